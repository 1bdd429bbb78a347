//! Notifications of file uploads: their form, their settlement, and what becomes of those that nobody settles.

use std::sync::Arc;

use holdfast_amqp::performatives::{Attach, DeliveryState, ReceiverSettleMode};
use holdfast_model::c2d::{LockToken, Settlement};
use holdfast_model::file::{FileNotification, FileNotificationDelivery};
use holdfast_model::{Error, ErrorCode, Timestamp};
use holdfast_ports::BoxFuture;
use holdfast_ports::file::FileNotifications;
use parking_lot::Mutex;

use crate::amqp_client::{Got, Hub, START, body, quick};
use crate::client::until;

/// So many notifications, and how each was settled.
#[derive(Default)]
pub(crate) struct FakeFiles {
    waiting: Mutex<Vec<u64>>,
    settled: Mutex<Vec<(u64, Settlement)>>,
}

impl FakeFiles {
    fn make(&self, count: u64) {
        self.waiting.lock().extend((1..=count).rev());
    }
}

impl FileNotifications for FakeFiles {
    fn receive_notification(&self) -> BoxFuture<'_, Result<Option<FileNotificationDelivery>, Error>> {
        Box::pin(async {
            let Some(number) = self.waiting.lock().pop() else {
                return Ok(None);
            };
            Ok(Some(FileNotificationDelivery {
                lock: LockToken {
                    sequence_number: number,
                    nonce: 7,
                },
                locked_until: Timestamp::from_seconds(START + 60),
                delivery_count: 0,
                notification: FileNotification {
                    device_id: "d1".to_owned(),
                    blob_uri: format!("https://a.test/box/d1/{number}"),
                    blob_name: format!("d1/{number}"),
                    blob_size: number,
                    blob_updated_at: Timestamp::from_seconds(START),
                    enqueued_at: Timestamp::from_seconds(START),
                    expires_at: Timestamp::from_seconds(START + 3_600),
                },
            }))
        })
    }

    fn settle_notification(
        &self,
        lock: LockToken,
        settlement: Settlement,
    ) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            if lock.sequence_number == 3 {
                return Err(Error::new(ErrorCode::DeviceMessageLockLost, "no such lock"));
            }
            self.settled.lock().push((lock.sequence_number, settlement));
            Ok(())
        })
    }
}

#[tokio::test]
async fn notifications_are_settled_as_their_receivers_say() {
    let files = Arc::new(FakeFiles::default());
    files.make(5);
    let hub = Hub::start_with_files(quick(), files.clone());
    let mut peer = hub.log_in(&["policy:service"]).await;
    let session = peer.session().await;
    let attach = Attach {
        rcv_settle_mode: ReceiverSettleMode::Second,
        ..Attach::receiver("files", "/messages/serviceBound/filenotifications")
    };
    let link = peer.attach(session, &attach, 5).await.expect("attached");
    let modified = |undeliverable_here| DeliveryState::Modified {
        delivery_failed: true,
        undeliverable_here,
        message_annotations: None,
    };
    let states = [
        DeliveryState::Accepted,
        DeliveryState::Released,
        DeliveryState::Accepted,
        modified(false),
    ];
    let mut last = None;
    for (number, state) in (1..=5_u64).zip(states.iter().map(Some).chain([None])) {
        let (id, settled, event) = peer.received(link).await;
        assert!(!settled);
        let told = String::from_utf8(body(&event)).expect("JSON");
        let wanted = format!(r#"{{"deviceId":"d1","blobUri":"https://a.test/box/d1/{number}""#);
        assert!(told.starts_with(&wanted), "{told}");
        let Some(state) = state else {
            last = Some(id);
            continue;
        };
        peer.settle(link, id, state, false).await;
        let answer = |got: &Got| matches!(got, Got::Settled(of, _) if *of == id);
        let Got::Settled(_, told) = peer.wait("an answer", answer).await else {
            panic!("that is what was waited for");
        };
        // The lock of the third is lost, and its receiver learns it.
        assert_eq!(told.starts_with("rejected "), number == 3, "{number}: {told}");
    }
    assert!(last.is_some());
    drop(peer);
    until("the end", || files.settled.lock().len() == 4).await;
    assert_eq!(
        *files.settled.lock(),
        [
            (1, Settlement::Complete),
            (2, Settlement::Abandon),
            (4, Settlement::Abandon),
            // Its connection ended.
            (5, Settlement::Release),
        ]
    );
}
