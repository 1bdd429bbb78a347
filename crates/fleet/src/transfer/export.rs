//! Writing all identities as lines.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{Stream, stream};
use holdfast_model::{Error, ErrorCode, Identity};

use super::{Progress, Transfer};

/// Identities read at once.
const PAGE: usize = 500;

/// Where an export stands.
struct Export {
    transfer: Transfer,
    progress: Arc<Progress>,
    exclude_keys: bool,
    after: Option<Identity>,
    ended: bool,
}

impl Transfer {
    /// All identities as lines, in pieces of a page each. Ends with an error when the hub cannot read, or when the
    /// transfer is cancelled.
    pub fn export(
        &self,
        exclude_keys: bool,
        progress: &Arc<Progress>,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
        let export = Export {
            transfer: self.clone(),
            progress: Arc::clone(progress),
            exclude_keys,
            after: None,
            ended: false,
        };
        stream::unfold(export, async |mut export| {
            if export.ended {
                return None;
            }
            let page = export.page().await.transpose()?;
            export.ended = page.is_err();
            Some((page, export))
        })
    }
}

impl Export {
    /// The next page; `None` behind the last.
    async fn page(&mut self) -> Result<Option<Bytes>, Error> {
        if self.progress.is_cancelled() {
            return Err(Error::new(
                ErrorCode::InvalidOperation,
                "the export was cancelled",
            ));
        }
        if self.after.is_none() {
            let devices = self.transfer.hub.registry_statistics().await?.total;
            self.progress.total.store(devices, Ordering::Relaxed);
        }
        // Reads run where they are asked for; others get their turn between two pages.
        tokio::task::yield_now().await;
        let page = self.transfer.hub.export(self.after.as_ref(), PAGE).await?;
        let Some((last, _)) = page.last() else {
            return Ok(None);
        };
        self.after = Some(last.identity.clone());
        let mut text = Vec::new();
        for (record, twin) in &page {
            self.transfer
                .format
                .write(&mut text, record, twin, self.exclude_keys);
        }
        let devices = page.iter().filter(|(record, _)| !record.identity.is_module());
        Progress::add(&self.progress.done, devices.count());
        Progress::add(&self.progress.lines, page.len());
        self.transfer.metrics.identities_exported.add(page.len() as u64);
        Ok(Some(text.into()))
    }
}
