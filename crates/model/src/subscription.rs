//! What a device session has subscribed to.

/// The downlink channels a device or module can subscribe to (mqtt.md section 5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Channel {
    /// Cloud-to-device messages (devices only).
    CloudToDevice = 0,
    /// Answers to twin requests.
    TwinResponses = 1,
    /// Desired-property changes.
    DesiredProperties = 2,
    /// Direct method calls.
    Methods = 3,
    /// Edge module inputs; accepted, delivered only by the edge hub.
    Inputs = 4,
    /// A module's own cloud-to-device filter: granted because the Java SDK subscribes on every connect; nothing is
    /// ever delivered on it.
    ModuleCloudToDevice = 5,
}

/// Set of subscribed channels with the granted delivery level, two bits a channel.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Subscriptions(u16);

impl Subscriptions {
    /// No subscription.
    pub const NONE: Subscriptions = Subscriptions(0);

    /// From the stored form of [`Subscriptions::bits`].
    #[must_use]
    pub const fn from_bits(bits: u16) -> Self {
        Subscriptions(bits)
    }

    /// Compact form for storage.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Subscribes `channel`; `at_least_once` is the granted quality of service (false: at most once).
    pub fn insert(&mut self, channel: Channel, at_least_once: bool) {
        self.remove(channel);
        self.0 |= (if at_least_once { 2 } else { 1 }) << Self::shift(channel);
    }

    /// Unsubscribes `channel`.
    pub fn remove(&mut self, channel: Channel) {
        self.0 &= !(0b11 << Self::shift(channel));
    }

    /// Whether `channel` is subscribed.
    #[must_use]
    pub const fn contains(self, channel: Channel) -> bool {
        (self.0 >> Self::shift(channel)) & 0b11 != 0
    }

    /// Whether `channel` is subscribed with at-least-once delivery.
    #[must_use]
    pub const fn at_least_once(self, channel: Channel) -> bool {
        (self.0 >> Self::shift(channel)) & 0b11 == 2
    }

    const fn shift(channel: Channel) -> u32 {
        channel as u32 * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_independent() {
        let mut set = Subscriptions::NONE;
        set.insert(Channel::CloudToDevice, true);
        set.insert(Channel::Methods, false);
        assert!(set.at_least_once(Channel::CloudToDevice));
        assert!(set.contains(Channel::Methods) && !set.at_least_once(Channel::Methods));
        assert!(!set.contains(Channel::Inputs));
        set.remove(Channel::CloudToDevice);
        assert!(!set.contains(Channel::CloudToDevice) && set.contains(Channel::Methods));
        assert_eq!(Subscriptions::from_bits(set.bits()), set);
    }
}
