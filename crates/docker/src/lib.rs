//! Module runtime on the Docker Engine API (Docker, Moby, Podman's compatible socket).
