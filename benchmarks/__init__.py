"""Paired measurements of the library against its peers and the bare loop; never imported by it."""
