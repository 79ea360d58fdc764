"""Apache Beam pipelines that run the TrackStar method; the mathematics is in the package `trackstar`."""
