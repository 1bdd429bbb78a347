use super::*;
use holdfast_model::message::Message;

#[test]
fn placeholder() {
    let _ = Message::default();
}
