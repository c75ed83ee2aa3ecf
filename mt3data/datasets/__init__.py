"""One module per dataset, each with one public function: `tracks(root, manifest) -> Iterator[Track]`."""
