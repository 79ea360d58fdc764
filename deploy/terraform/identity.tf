# Four accounts, each with what it does and no more:
#   scheduler   launches the nightly template
#   launcher    runs the template's launcher and the driver, which starts the command's jobs and commits
#   worker      runs the command's jobs: reads corpus and model, writes the index
#   builder     builds and pushes the image, where Cloud Build does that
resource "google_service_account" "scheduler" {
  account_id   = "trackstar-scheduler"
  display_name = "TrackStar: launches the nightly run"
  depends_on   = [google_project_service.needed]
}

resource "google_service_account" "launcher" {
  account_id   = "trackstar-launcher"
  display_name = "TrackStar: starts jobs and commits"
  depends_on   = [google_project_service.needed]
}

resource "google_service_account" "worker" {
  account_id   = "trackstar-worker"
  display_name = "TrackStar: workers"
  depends_on   = [google_project_service.needed]
}

resource "google_service_account" "builder" {
  account_id   = "trackstar-builder"
  display_name = "TrackStar: builds the image"
  depends_on   = [google_project_service.needed]
}

locals {
  scheduler = "serviceAccount:${google_service_account.scheduler.email}"
  launcher  = "serviceAccount:${google_service_account.launcher.email}"
  worker    = "serviceAccount:${google_service_account.worker.email}"
  builder   = "serviceAccount:${google_service_account.builder.email}"

  # Roles that hold for the whole project, because their permissions belong to jobs and not to a resource of ours.
  project_roles = {
    "scheduler-launches" = { member = local.scheduler, role = "roles/dataflow.developer" }
    "launcher-launches"  = { member = local.launcher, role = "roles/dataflow.developer" }
    "launcher-is-worker" = { member = local.launcher, role = "roles/dataflow.worker" }
    "worker-is-worker"   = { member = local.worker, role = "roles/dataflow.worker" }
    "builder-logs"       = { member = local.builder, role = "roles/logging.logWriter" }
  }

  # Who may start jobs as whom.
  acts_as = {
    "scheduler-as-launcher" = { member = local.scheduler, account = google_service_account.launcher.name }
    "launcher-as-itself"    = { member = local.launcher, account = google_service_account.launcher.name }
    "launcher-as-worker"    = { member = local.launcher, account = google_service_account.worker.name }
  }

  # Buckets of the corpus and the model that are not ours: only read.
  foreign_buckets = setsubtract(
    [for uri in concat(split(" ", var.corpus), [var.model]) : split("/", uri)[2]],
    [var.bucket],
  )
  readers = {
    for pair in setproduct(local.foreign_buckets, ["launcher", "worker"]) :
    "${pair[0]}-${pair[1]}" => { bucket = pair[0], member = { launcher = local.launcher, worker = local.worker }[pair[1]] }
  }
}

resource "google_project_iam_member" "project_role" {
  for_each = local.project_roles

  project = var.project
  role    = each.value.role
  member  = each.value.member
}

resource "google_service_account_iam_member" "acts_as" {
  for_each = local.acts_as

  service_account_id = each.value.account
  role               = "roles/iam.serviceAccountUser"
  member             = each.value.member
}

resource "google_storage_bucket_iam_member" "writes" {
  for_each = { launcher = local.launcher, worker = local.worker, builder = local.builder }

  bucket = google_storage_bucket.trackstar.name
  role   = "roles/storage.objectUser"
  member = each.value
}

resource "google_storage_bucket_iam_member" "scheduler_reads_templates" {
  bucket = google_storage_bucket.trackstar.name
  role   = "roles/storage.objectViewer"
  member = local.scheduler

  condition {
    title      = "templates"
    expression = "resource.name.startsWith(\"projects/_/buckets/${var.bucket}/objects/templates/\")"
  }
}

resource "google_storage_bucket_iam_member" "reads" {
  for_each = local.readers

  bucket = each.value.bucket
  role   = "roles/storage.objectViewer"
  member = each.value.member
}

resource "google_artifact_registry_repository_iam_member" "pulls" {
  for_each = { launcher = local.launcher, worker = local.worker }

  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.reader"
  member     = each.value
}

resource "google_artifact_registry_repository_iam_member" "pushes" {
  repository = google_artifact_registry_repository.images.name
  location   = var.region
  role       = "roles/artifactregistry.writer"
  member     = local.builder
}
