//! Images: pull, find, list, remove.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use holdfast_agent::runtime::{Image, PullProgress, RegistryAuth, RuntimeError};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Method, Response};
use serde::Deserialize;
use tokio::time::timeout;

use crate::answer;
use crate::connection::MESSAGE_BYTES_MAX;
use crate::progress::Progress;
use crate::runtime::{DockerRuntime, escape, escape_image};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    id: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    size: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Found {
    id: String,
}

impl From<Listed> for Image {
    fn from(listed: Listed) -> Self {
        let tags = listed.repo_tags.unwrap_or_default();
        Self {
            id: listed.id,
            tags: tags.into_iter().filter(|tag| tag != "<none>:<none>").collect(),
            size_bytes: u64::try_from(listed.size).unwrap_or(0),
        }
    }
}

/// Value of `X-Registry-Auth`: JSON in base64 for URLs, with padding, as the engine's own client writes it.
fn registry_auth(auth: &RegistryAuth) -> String {
    let text = serde_json::json!({
        "username": auth.username,
        "password": auth.password,
        "serveraddress": auth.server_address,
    });
    URL_SAFE.encode(text.to_string())
}

/// An image's name with `:latest` when it has neither tag nor digest: an engine would pull every tag.
fn with_tag(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    if last.contains(':') || last.contains('@') {
        image.to_owned()
    } else {
        format!("{image}:latest")
    }
}

impl DockerRuntime {
    pub(crate) async fn pull_image(
        &self,
        image: &str,
        auth: Option<&RegistryAuth>,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        let within = self.timeouts.pull;
        let pulled = timeout(within, self.pull_until_done(image, auth, progress)).await;
        pulled.unwrap_or_else(|_| Err(failed(image, format!("not done within {within:?}"))))
    }

    async fn pull_until_done(
        &self,
        image: &str,
        auth: Option<&RegistryAuth>,
        progress: &(dyn Fn(PullProgress) + Send + Sync),
    ) -> Result<(), RuntimeError> {
        let mut session = self.connect().await?;
        let path = format!("/images/create?fromImage={}", escape(&with_tag(image)));
        let header = auth.map(registry_auth);
        let mut call = session.call(Method::POST, &path);
        call.registry_auth = header.as_deref();
        let silence = self.timeouts.silence;
        let response = self.noting(session.connection.send(call, silence).await)?;
        if !response.status().is_success() {
            let message = first_bytes(response, silence).await;
            return Err(failed(image, answer::message(&message)));
        }
        let mut told = Progress::default();
        let mut body = response.into_body();
        loop {
            let frame = match timeout(silence, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return self.noting(Err(session.connection.failed("pulling", &error)));
                }
                Err(_) => {
                    return self.noting(Err(session.connection.late("the next step of a pull", silence)));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            if told.take(&data).map_err(|cause| failed(image, cause))? {
                progress(told.sum());
            }
        }
        told.finish().map_err(|cause| failed(image, cause))
    }

    pub(crate) async fn find_image(&self, image: &str) -> Result<Option<String>, RuntimeError> {
        let path = format!("/images/{}/json", escape_image(image));
        match self.get(&path).await {
            Ok(body) => answer::json::<Found>("GET /images/NAME/json", &body).map(|found| Some(found.id)),
            Err(RuntimeError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn list_images(&self) -> Result<Vec<Image>, RuntimeError> {
        let body = self.get("/images/json").await?;
        let listed: Vec<Listed> = answer::json("GET /images/json", &body)?;
        Ok(listed.into_iter().map(Image::from).collect())
    }

    pub(crate) async fn delete_image(&self, image: &str) -> Result<(), RuntimeError> {
        let mut session = self.connect().await?;
        let path = format!("/images/{}", escape_image(image));
        match self
            .change(&mut session, Method::DELETE, &path, self.timeouts.change)
            .await
        {
            Err(RuntimeError::NotFound(_)) => Ok(()),
            outcome => outcome,
        }
    }
}

fn failed(image: &str, cause: String) -> RuntimeError {
    RuntimeError::Pull {
        image: image.to_owned(),
        cause,
    }
}

/// The beginning of an error's text; less, when no more comes.
async fn first_bytes(response: Response<Incoming>, within: Duration) -> Vec<u8> {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while bytes.len() < MESSAGE_BYTES_MAX {
        let Ok(Some(Ok(frame))) = timeout(within, body.frame()).await else {
            break;
        };
        if let Ok(data) = frame.into_data() {
            let room = MESSAGE_BYTES_MAX - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_tag_means_the_latest() {
        for (given, asked) in [
            ("sensor", "sensor:latest"),
            ("127.0.0.1:5000/sensor", "127.0.0.1:5000/sensor:latest"),
            ("127.0.0.1:5000/sensor:1.0", "127.0.0.1:5000/sensor:1.0"),
            ("a/b@sha256:00", "a/b@sha256:00"),
        ] {
            assert_eq!(with_tag(given), asked);
        }
    }

    #[test]
    fn credentials_travel_as_the_engine_wants_them() {
        let header = registry_auth(&RegistryAuth {
            server_address: "r:5000".to_owned(),
            username: "u".to_owned(),
            password: "p?>".to_owned(),
        });
        let text = URL_SAFE.decode(&header).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"username":"u","password":"p?>","serveraddress":"r:5000"})
        );
    }

    #[test]
    fn untagged_images_have_no_names() {
        let text = r#"[{"Id":"sha256:1","RepoTags":["<none>:<none>"],"Size":5},{"Id":"sha256:2","RepoTags":null,"Size":-1}]"#;
        let listed: Vec<Listed> = serde_json::from_str(text).unwrap();
        let images: Vec<Image> = listed.into_iter().map(Image::from).collect();
        assert!(images.iter().all(|image| image.tags.is_empty()));
        assert_eq!((images[0].size_bytes, images[1].size_bytes), (5, 0));
    }
}
