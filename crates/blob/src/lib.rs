//! Embedded blob store: containers and block blobs in a folder, behind the part of the Blob REST API that devices and tools use.
