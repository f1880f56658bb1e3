"""TroL-tiny: a small TroL that is trained here, from nothing, on drawn pictures, and comes with this package."""
