"""Programs that reproduce a table or figure each, as absl binaries."""
