"""The store: every artifact is a folder of files plus `manifest.json`, written last. No manifest, no artifact.

In: files of a room. Out: a reference whose digest covers the files, the config and every parent. Imports no room.
"""
