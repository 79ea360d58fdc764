output "bucket" {
  description = "The bucket of index, queries and results."
  value       = google_storage_bucket.trackstar.url
}

output "index" {
  description = "What to give as --index."
  value       = "${google_storage_bucket.trackstar.url}/index"
}

output "templates" {
  description = "What to give as --template-file-gcs-location."
  value       = [for object in google_storage_bucket_object.template : "gs://${object.bucket}/${object.name}"]
}

output "service_accounts" {
  description = "Who does what."
  value = {
    scheduler = google_service_account.scheduler.email
    launcher  = google_service_account.launcher.email
    worker    = google_service_account.worker.email
    builder   = google_service_account.builder.email
  }
}
