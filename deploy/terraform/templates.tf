# The container specs, one a command, as rendered from the commands' own flags.
resource "google_storage_bucket_object" "template" {
  for_each = fileset("${path.module}/${var.rendered}/templates", "*.json")

  bucket       = google_storage_bucket.trackstar.name
  name         = "templates/${each.key}"
  content      = file("${path.module}/${var.rendered}/templates/${each.key}")
  content_type = "application/json"
}
