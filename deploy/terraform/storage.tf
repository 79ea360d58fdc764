# Everything of this project is in one bucket:
#   index/  queries/  results/   the data
#   templates/                   container specs of the Flex Templates
#   tmp/  staging/  build/       of single runs; dropped after two weeks
resource "google_storage_bucket" "trackstar" {
  name                        = var.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  # The index's own log keeps its snapshots, and vacuum is what drops old files: a second history would keep what was taken down.
  versioning {
    enabled = false
  }

  # Bytes that vacuum removed stay restorable this long. A take-down counts as final only after it: 0 ends it at once.
  soft_delete_policy {
    retention_duration_seconds = 604800
  }

  lifecycle_rule {
    condition {
      age            = 14
      matches_prefix = ["tmp/", "staging/", "build/"]
    }
    action {
      type = "Delete"
    }
  }

  lifecycle_rule {
    condition {
      age = 2
    }
    action {
      type = "AbortIncompleteMultipartUpload"
    }
  }

  depends_on = [google_project_service.needed]

  lifecycle {
    prevent_destroy = true
  }
}

resource "google_artifact_registry_repository" "images" {
  repository_id = "trackstar"
  location      = var.region
  format        = "DOCKER"
  description   = "The image of TrackStar: launcher, driver and workers."

  cleanup_policies {
    id     = "keep-the-last"
    action = "KEEP"
    most_recent_versions {
      keep_count = 10
    }
  }

  cleanup_policies {
    id     = "drop-old-ones"
    action = "DELETE"
    condition {
      older_than = "7776000s"
    }
  }

  depends_on = [google_project_service.needed]
}
