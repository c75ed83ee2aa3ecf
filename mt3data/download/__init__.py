"""Downloads, unpacks and verifies the files of a dataset.

Downloads resume, retry and switch to mirrors.
Checksums are compared with those that the dataset manifest states.
"""
