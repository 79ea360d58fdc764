variable "project" {
  description = "Id of the Google Cloud project that all of this goes into; it must exist and have billing."
  type        = string
}

variable "region" {
  description = "Where jobs run and where the bucket is. The GPUs of encode_shape must be had there."
  type        = string
  default     = "us-central1"
}

variable "bucket" {
  description = "Name of the bucket that is made for index, queries, results, templates and temporary files."
  type        = string
}

variable "corpus" {
  description = "Shards of the corpus: gs://BUCKET/GLOB, several with a blank between. Workers get the right to read these buckets."
  type        = string
}

variable "model" {
  description = "Checkpoint folder of the model, with its tokenizer: gs://BUCKET/FOLDER. Workers get the right to read its bucket."
  type        = string
}

variable "alert_email" {
  description = "Who hears of a failed or a missed night."
  type        = string
}

variable "schedule" {
  description = "When the nightly run starts, as five fields of cron."
  type        = string
  default     = "0 1 * * *"
}

variable "time_zone" {
  description = "Time zone of the schedule, by its name in the tz database."
  type        = string
  default     = "Etc/UTC"
}

variable "encode_shape" {
  description = "Machines that run the model, by name in ../shapes.json."
  type        = string
  default     = "l4"
}

variable "scan_shape" {
  description = "Machines that scan the index, by name in ../shapes.json."
  type        = string
  default     = "cpu"
}

variable "max_workers" {
  description = "Most workers of one job at once."
  type        = number
  default     = 4
}

variable "vacuum_days" {
  description = "How many days of snapshots the nightly run keeps; older files that no snapshot needs are deleted."
  type        = number
  default     = 30
}

variable "rendered" {
  description = "Folder of the rendered templates and launch bodies; `make deploy` renders into ../build."
  type        = string
  default     = "../build"
}
