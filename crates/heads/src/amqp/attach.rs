//! Links: what each is for, and who may have it.

use holdfast_amqp::LinkId;
use holdfast_amqp::performatives::{Attach, Role, Source, Target, condition};
use holdfast_model::policy::Rights;
use holdfast_wire::links::{Address, redirect_address};
use holdfast_wire::provisioning::Resource;

use super::core::Core;
use super::failure::{End, Failure};
use super::members::{Feature, MemberId};
use super::outbox::settles;
use super::reader::Reader;
use super::registration::REGISTRATION_WINDOW;
use super::telemetry::Producer;
use holdfast_amqp::types::{MapBuf, Value};

/// An attached link.
pub(super) enum Link {
    /// `$cbs`, from the client.
    CbsRequests,
    /// `{idScope}/registrations/{registrationId}`, from the client.
    RegistrationRequests,
    /// The same, to the client.
    RegistrationAnswers { settled: bool },
    /// `$cbs`, to the client.
    CbsAnswers { settled: bool, target: Option<Box<str>> },
    /// Telemetry of a device or module.
    Telemetry { member: MemberId },
    /// Something on which nothing is ever sent: module inputs, cloud-to-device messages of modules.
    SilentMember { member: MemberId },
    /// Cloud-to-device messages; of a module, messages for its inputs.
    CloudToDevice { member: MemberId },
    /// Method calls.
    MethodCalls { member: MemberId },
    /// Their answers.
    MethodAnswers { member: MemberId },
    /// Twin requests.
    TwinRequests { member: MemberId },
    /// Answers to them, and changes of desired properties.
    TwinAnswers { member: MemberId },
    /// Cloud-to-device messages of a service.
    ServiceC2d,
    /// Feedback on them.
    Feedback,
    /// Notifications of file uploads.
    FileNotifications,
    /// `$management`, from the client.
    ManagementRequests,
    /// `$management`, to the client.
    ManagementAnswers { settled: bool, target: Option<Box<str>> },
    /// Events of a partition.
    Reader(Box<Reader>),
    /// Events of a producer.
    Producer(Box<Producer>),
}

impl Link {
    /// Whether a token of a policy is what it rests on.
    pub(super) fn is_service(&self) -> bool {
        matches!(
            self,
            Link::ServiceC2d
                | Link::Feedback
                | Link::FileNotifications
                | Link::ManagementRequests
                | Link::ManagementAnswers { .. }
                | Link::Reader(_)
                | Link::Producer(_)
        )
    }

    /// The identity it belongs to.
    pub(super) fn member(&self) -> Option<MemberId> {
        match self {
            Link::Telemetry { member }
            | Link::SilentMember { member }
            | Link::CloudToDevice { member }
            | Link::MethodCalls { member }
            | Link::MethodAnswers { member }
            | Link::TwinRequests { member }
            | Link::TwinAnswers { member } => Some(*member),
            _ => None,
        }
    }
}

impl Core {
    /// The client asks for a link.
    pub(super) fn take_attach(
        &mut self,
        link: LinkId,
        attach: &Attach<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let text = match attach.role {
            Role::Sender => attach.target.and_then(|target| target.address),
            Role::Receiver => attach.source.and_then(|source| source.address),
        };
        let Some(text) = text else {
            let failure = Failure::new(condition::INVALID_FIELD, "the link has no address");
            return self.refuse(link, &failure, out);
        };
        let Ok(address) = Address::parse(text) else {
            let registration = self.shared.provisioning.as_ref().and(Resource::parse(text));
            if let Some(registration) = registration {
                return self.attach_registration(link, registration, attach, out);
            }
            let failure = Failure::new(condition::NOT_FOUND, format!("there is no {text} on this hub"));
            return self.refuse(link, &failure, out);
        };
        if address == Address::Cbs {
            self.attach_cbs(link, attach, out);
            return Ok(());
        }
        if let Some(identity) = address.identity() {
            let identity = identity.clone();
            return match feature(&address, attach.role, self.shared.config.module_inputs) {
                Some(feature) => self.attach_member(link, identity, feature, attach, out),
                None => self.refuse_role(link, out),
            };
        }
        self.attach_service(link, &address, attach, out)
    }

    fn attach_cbs(&mut self, link: LinkId, attach: &Attach<'_>, out: &mut Vec<u8>) {
        let kind = match attach.role {
            Role::Sender => Link::CbsRequests,
            Role::Receiver => Link::CbsAnswers {
                settled: settles(attach),
                target: attach.target.and_then(|target| target.address).map(Into::into),
            },
        };
        self.accept_attach(link, kind, attach, self.shared.config.request_bytes_max, out);
    }

    fn attach_service(
        &mut self,
        link: LinkId,
        address: &Address,
        attach: &Attach<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let path = address.service_path().unwrap_or_default();
        let now = self.shared.clock.now();
        let Some(grant) = self.login.service_grant(Rights::SERVICE_CONNECT, &path, now) else {
            let failure = Failure::unauthorized(format!(
                "no token on this connection gives ServiceConnect on {path}"
            ));
            return self.refuse(link, &failure, out);
        };
        let grant = grant.clone();
        if !self.shared.services.is_current(&grant) {
            let failure = Failure::unauthorized("the policy of the token has changed");
            return self.refuse(link, &failure, out);
        }
        self.used = true;
        let (requests, settled) = (self.shared.config.request_bytes_max, settles(attach));
        let kind = match (address, attach.role) {
            (Address::Redirected { rest }, _) => return self.redirect(link, rest, attach, out),
            (
                Address::Partition {
                    consumer_group,
                    partition,
                },
                Role::Receiver,
            ) => {
                self.services.paths.insert(link, path.into());
                return self.attach_reader(link, consumer_group, *partition, attach, out);
            }
            (Address::Publish { partition }, Role::Sender) => {
                match Producer::new(&self.shared, *partition, &grant) {
                    Ok(producer) => Link::Producer(Box::new(producer)),
                    Err(failure) => return self.refuse(link, &failure, out),
                }
            }
            (Address::ServiceCloudToDevice, Role::Sender) => Link::ServiceC2d,
            (Address::ServiceFeedback, Role::Receiver) => Link::Feedback,
            (Address::ServiceFileNotifications, Role::Receiver) => Link::FileNotifications,
            (Address::Management, Role::Sender) => Link::ManagementRequests,
            (Address::Management, Role::Receiver) => Link::ManagementAnswers {
                settled,
                target: attach.target.and_then(|target| target.address).map(Into::into),
            },
            _ => return self.refuse_role(link, out),
        };
        let bytes_max = match &kind {
            Link::Producer(_) => self.shared.config.producer_bytes_max,
            _ => requests,
        };
        self.services.paths.insert(link, path.into());
        self.accept_attach(link, kind, attach, bytes_max, out);
        Ok(())
    }

    /// Agrees to a link.
    pub(super) fn accept_attach(
        &mut self,
        link: LinkId,
        kind: Link,
        attach: &Attach<'_>,
        bytes_max: u64,
        out: &mut Vec<u8>,
    ) {
        let window = match (attach.role, &kind) {
            (Role::Sender, Link::RegistrationRequests) => REGISTRATION_WINDOW,
            (Role::Sender, _) => self.shared.config.link_window,
            (Role::Receiver, _) => 0,
        };
        // A terminus that the client left out must be there all the same: its absence means a refusal.
        let answer = Attach {
            source: attach.source.or(Some(Source::default())),
            target: attach.target.or(Some(Target::default())),
            max_message_size: Some(bytes_max),
            ..attach.agree()
        };
        self.links.insert(link, kind);
        self.machine.accept_link(link, &answer, window, out);
    }

    /// Refuses a link that was not accepted.
    pub(super) fn refuse(&mut self, link: LinkId, failure: &Failure, out: &mut Vec<u8>) -> Result<(), End> {
        self.services.paths.remove(&link);
        let machine = &mut self.machine;
        failure.tell(self.shared.clock.now(), |error| {
            machine.refuse_link(link, error, out)
        });
        Ok(())
    }

    fn refuse_role(&mut self, link: LinkId, out: &mut Vec<u8>) -> Result<(), End> {
        let failure = Failure::new(condition::NOT_ALLOWED, "the address is not for this direction");
        self.refuse(link, &failure, out)
    }

    /// Sends a reader of the hub's events to the event hub (AMQP contract, section 5.1).
    fn redirect(
        &mut self,
        link: LinkId,
        rest: &str,
        attach: &Attach<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let host = self.own_host();
        let address = redirect_address(&host, rest);
        let mut info = MapBuf::new();
        info.symbol("hostname", &Value::String(&host));
        info.symbol("network-host", &Value::String(&host));
        info.symbol(
            "port",
            &Value::Int(i32::from(holdfast_wire::links::REDIRECT_PORT)),
        );
        info.symbol("address", &Value::String(&address));
        self.machine.accept_link(link, &attach.agree(), 0, out);
        let error = holdfast_amqp::performatives::Error {
            info: Some(info.as_map()),
            ..holdfast_amqp::performatives::Error::new(
                condition::LINK_REDIRECT,
                "events are read at the event hub-compatible endpoint",
            )
        };
        self.machine.detach(link, Some(&error), out);
        Ok(())
    }

    /// The host name by which the client knows us, if it is one of ours; else our first.
    fn own_host(&self) -> String {
        let names = self.shared.gateway.host_names();
        let asked = self
            .host
            .as_deref()
            .map(|host| host.split(':').next().unwrap_or(host));
        names
            .iter()
            .find(|name| asked.is_some_and(|asked| name.eq_ignore_ascii_case(asked)))
            .or(names.first())
            .cloned()
            .unwrap_or_default()
    }

    /// A link is gone, whoever ended it.
    pub(super) fn link_gone(&mut self, link: LinkId, out: &mut Vec<u8>) -> Result<(), End> {
        self.outbox.forget(link);
        self.services.paths.remove(&link);
        self.judged_link_gone(link);
        let Some(kind) = self.links.remove(&link) else {
            return self.pending_gone(link, out);
        };
        if let Some(member) = kind.member() {
            return self.member_link_gone(member, link, &kind, out);
        }
        match kind {
            Link::Feedback | Link::FileNotifications => self.receiver_gone(link),
            Link::Reader(_) => self.readers.retain(|other| *other != link),
            Link::Producer(mut producer) => self.uplink.bytes -= producer.acks.forget(),
            _ => {}
        }
        Ok(())
    }
}

/// What an identity's link is for.
fn feature(address: &Address, role: Role, module_inputs: bool) -> Option<Feature> {
    Some(match (address, role) {
        (Address::Events(_), Role::Sender) => Feature::Telemetry,
        (Address::Events(identity), Role::Receiver) if identity.is_module() => match module_inputs {
            true => Feature::CloudToDevice,
            false => Feature::Silent,
        },
        (Address::CloudToDevice(identity), Role::Receiver) => match identity.is_module() {
            true => Feature::Silent,
            false => Feature::CloudToDevice,
        },
        (Address::Methods(_), Role::Receiver) => Feature::MethodCalls,
        (Address::Methods(_), Role::Sender) => Feature::MethodAnswers,
        (Address::Twin(_), Role::Receiver) => Feature::TwinAnswers,
        (Address::Twin(_), Role::Sender) => Feature::TwinRequests,
        _ => return None,
    })
}
