resource "google_monitoring_notification_channel" "email" {
  display_name = "TrackStar"
  type         = "email"
  labels       = { email_address = var.alert_email }
  depends_on   = [google_project_service.needed]
}

# Nights that ended well: the driver's last line, after the commit.
resource "google_logging_metric" "nights_done" {
  name        = "trackstar/nights_done"
  description = "Nightly runs that committed, or found nothing to do."
  filter      = <<-EOT
    resource.type="dataflow_step"
    resource.labels.job_name="trackstar-reindex"
    jsonPayload.message:"trackstar reindex: the driver is done"
  EOT

  metric_descriptor {
    metric_kind = "DELTA"
    value_type  = "INT64"
  }

  depends_on = [google_project_service.needed]
}

resource "google_monitoring_alert_policy" "failed" {
  display_name          = "TrackStar: a job failed"
  combiner              = "OR"
  notification_channels = [google_monitoring_notification_channel.email.id]

  conditions {
    display_name = "Dataflow calls a job of ours failed"

    condition_threshold {
      filter          = "resource.type = \"dataflow_job\" AND resource.labels.job_name = starts_with(\"trackstar-\") AND metric.type = \"dataflow.googleapis.com/job/is_failed\""
      comparison      = "COMPARISON_GT"
      threshold_value = 0
      duration        = "0s"

      aggregations {
        alignment_period   = "300s"
        per_series_aligner = "ALIGN_MAX"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "What to do: docs/operations.md, section 7. Finished work is kept; launching the command again takes it up."
  }
}

resource "google_monitoring_alert_policy" "not_launched" {
  display_name          = "TrackStar: the nightly launch was refused"
  combiner              = "OR"
  notification_channels = [google_monitoring_notification_channel.email.id]

  conditions {
    display_name = "Cloud Scheduler got an error"

    condition_matched_log {
      filter = "resource.type=\"cloud_scheduler_job\" AND resource.labels.job_id=\"trackstar-nightly\" AND severity>=ERROR"
    }
  }

  alert_strategy {
    notification_rate_limit {
      period = "3600s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "An answer of 409 means that the last night's run is still going. All others: docs/operations.md, section 7."
  }
}

# Catches what the others cannot: a schedule that was paused, a driver that waits for ever. A day without a night that ended well,
# and four hours on top, since one night may take longer than the next.
resource "google_monitoring_alert_policy" "missed" {
  display_name          = "TrackStar: a night was missed"
  combiner              = "OR"
  notification_channels = [google_monitoring_notification_channel.email.id]

  conditions {
    display_name = "No nightly run has ended well for a day and four hours"

    condition_threshold {
      filter                  = "resource.type = \"dataflow_job\" AND metric.type = \"logging.googleapis.com/user/${google_logging_metric.nights_done.name}\""
      comparison              = "COMPARISON_LT"
      threshold_value         = 1
      duration                = "14400s"
      evaluation_missing_data = "EVALUATION_MISSING_DATA_ACTIVE"

      aggregations {
        alignment_period     = "86400s"
        per_series_aligner   = "ALIGN_SUM"
        cross_series_reducer = "REDUCE_SUM"
      }
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Readers keep the last good snapshot. Look for the job trackstar-reindex: docs/operations.md, section 7."
  }
}
