# Every night a static body is posted. Its job name is constant: while a run goes on, Dataflow refuses the next one.
resource "google_cloud_scheduler_job" "nightly" {
  name             = "trackstar-nightly"
  description      = "Brings the index up to date with the corpus."
  region           = var.region
  schedule         = var.schedule
  time_zone        = var.time_zone
  attempt_deadline = "180s"

  http_target {
    http_method = "POST"
    uri         = "https://dataflow.googleapis.com/v1b3/projects/${var.project}/locations/${var.region}/flexTemplates:launch"
    headers     = { "Content-Type" = "application/json" }
    body        = base64encode(file("${path.module}/${var.rendered}/launch/reindex.json"))

    oauth_token {
      service_account_email = google_service_account.scheduler.email
      scope                 = "https://www.googleapis.com/auth/cloud-platform"
    }
  }

  # For a service that does not answer; a launch that was accepted is never repeated.
  retry_config {
    retry_count          = 3
    min_backoff_duration = "60s"
    max_backoff_duration = "600s"
  }

  depends_on = [
    google_project_service.needed,
    google_storage_bucket_object.template,
    google_project_iam_member.project_role,
    google_service_account_iam_member.acts_as,
  ]
}
