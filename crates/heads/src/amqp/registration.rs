//! Devices that want to be provisioned (AMQP contract, section 6).
//!
//! A device proves its registration id in the SASL layer, by token (`PLAIN`) or TPM, or by its TLS certificate when it
//! attaches its first link. Then it has two links with the address `{idScope}/registrations/{registrationId}`: requests
//! go one way, answers the other.
//!
//! # SASL mechanism `TPM`
//!
//! ```text
//! client                                              server
//! init: 0, id scope, 0, registration id, 0, key ────►
//!                                               ◄──── challenge: 0
//! response: 0, storage root key                 ────►
//!                                               ◄──── challenge: control byte, a part of the activation blob
//! response: 0                                   ────►
//!                                               ◄──── challenge: control byte, the rest
//! response: 0, token                            ────►
//!                                               ◄──── outcome
//! ```
//!
//! A control byte is 0x80, with 0x40 in the last part, and the number of the part in its low two bits.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_amqp::connection::Delivery;
use holdfast_amqp::message::{MessageIdBuf, Properties, Writer};
use holdfast_amqp::performatives::{
    Attach, DeliveryState, Error as AmqpError, Performative, Role, SaslCode, condition,
};
use holdfast_amqp::types::{MapBuf, Value};
use holdfast_amqp::{LinkId, Message};
use holdfast_model::provisioning::{REQUEST_BYTES_MAX, Registration};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::gateway::Credential;
use holdfast_ports::provisioning::{ProvisioningGateway, Registrant, RegistrationAccess, TpmAccess, TpmKeys};
use holdfast_wire::dto::provisioning::{DeviceRegistrationDto, operation_json};
use holdfast_wire::error;
use holdfast_wire::provisioning::{AmqpRequest, RETRY_AFTER_NAMES, Resource, amqp_request};

use super::attach::Link;
use super::core::{Core, Done};
use super::failure::{End, Failure};
use super::outbox::settles;
use crate::dps;

/// Bytes of an activation blob in one challenge: far below the 512 that a SASL frame may have (AMQP 5.3.3), and such that
/// every blob has two parts, as the Java SDK wants it.
const PART_BYTES: usize = 430;
const PART: u8 = 0x80;
const LAST_PART: u8 = 0x40;
const PART_NUMBER: u8 = 0x03;
/// Requests that a device may have under way; the SDKs have one.
pub(super) const REGISTRATION_WINDOW: u32 = 4;
/// Room for the sections of a request besides its body.
const SECTIONS_BYTES_MAX: u64 = 4 * 1024;

/// The provisioning side of a connection.
#[derive(Default)]
pub(super) struct Registering {
    proven: Option<Arc<Proven>>,
    tpm: Option<TpmLogin>,
    /// Links whose certificate is being judged.
    pending: HashSet<LinkId>,
}

/// A registration id that the client has proven, with the scope it named.
struct Proven {
    id_scope: String,
    registrant: Registrant,
}

impl Proven {
    fn covers(&self, name: &Resource) -> bool {
        self.id_scope == name.id_scope
            && self
                .registrant
                .registration_id
                .as_str()
                .eq_ignore_ascii_case(&name.registration_id)
    }
}

/// How far a TPM has got.
struct TpmLogin {
    name: Resource,
    step: TpmStep,
}

enum TpmStep {
    /// The storage root key is to come.
    Keys { endorsement_key: Bytes },
    /// A part was sent and is to be confirmed.
    Parts { rest: Bytes, number: u8 },
    /// The token is to come.
    Token,
    /// The service looks at something.
    Judged,
}

impl Core {
    fn provisioning(&self) -> Option<Arc<dyn ProvisioningGateway>> {
        self.shared.provisioning.clone()
    }

    fn registering(&mut self) -> &mut Registering {
        self.registering.get_or_insert_default()
    }

    /// A user name that names a registration, with a token as password. False: the user name is somebody else's.
    pub(super) fn take_plain_registration(&mut self, user: &str, token: &str) -> bool {
        let (Some(gateway), Some(name)) = (self.provisioning(), Resource::parse(user)) else {
            return false;
        };
        self.judge_token(gateway, name, token.to_owned());
        true
    }

    fn judge_token(&mut self, gateway: Arc<dyn ProvisioningGateway>, name: Resource, token: String) {
        let protocol = self.protocol;
        self.wait(async move {
            let access = RegistrationAccess {
                id_scope: &name.id_scope,
                registration_id: &name.registration_id,
                credential: Credential::Sas(&token),
                protocol,
            };
            let outcome = gateway.authenticate(access).await;
            let done: Done = Box::new(move |core, out| match outcome {
                Ok(registrant) => {
                    core.prove(name.id_scope, registrant);
                    core.end_sasl(SaslCode::Ok, out);
                    Ok(())
                }
                Err(error) => Err(core.refuse_registration(&error, out)),
            });
            done
        });
    }

    fn prove(&mut self, id_scope: String, registrant: Registrant) {
        self.used = true;
        let registering = self.registering();
        registering.tpm = None;
        registering.proven = Some(Arc::new(Proven { id_scope, registrant }));
    }

    fn refuse_registration(&mut self, error: &Error, out: &mut Vec<u8>) -> End {
        let code = match dps::may_try_again(error.code) {
            true => SaslCode::SysTemp,
            false => SaslCode::Auth,
        };
        self.end_sasl(code, out);
        End::refused(error.message.clone())
    }

    /// The first message of a TPM.
    pub(super) fn take_tpm_init(&mut self, response: &[u8], out: &mut Vec<u8>) -> Result<(), End> {
        let mut parts = response.splitn(4, |byte| *byte == 0);
        let text =
            |part: Option<&[u8]>| part.and_then(|part| std::str::from_utf8(part).ok().map(str::to_owned));
        let (Some(b""), Some(id_scope), Some(registration_id), Some(key)) =
            (parts.next(), text(parts.next()), text(parts.next()), parts.next())
        else {
            return Err(self.refuse_sasl("a malformed TPM response", out));
        };
        let step = TpmStep::Keys {
            endorsement_key: Bytes::copy_from_slice(key),
        };
        let name = Resource {
            id_scope,
            registration_id,
        };
        self.registering().tpm = Some(TpmLogin { name, step });
        self.challenge(&[0], out);
        Ok(())
    }

    /// Another message of a TPM. Every one begins with 0.
    pub(super) fn take_tpm_response(&mut self, response: &[u8], out: &mut Vec<u8>) -> Result<(), End> {
        let gateway = self.provisioning();
        let login = self
            .registering
            .as_mut()
            .and_then(|registering| registering.tpm.as_mut());
        let (Some(gateway), Some(login)) = (gateway, login) else {
            return Err(End::protocol("a SASL response without a challenge"));
        };
        let Some((0, content)) = response.split_first() else {
            return Err(self.refuse_sasl("a malformed TPM response", out));
        };
        match std::mem::replace(&mut login.step, TpmStep::Judged) {
            TpmStep::Keys { endorsement_key } => {
                let keys = TpmKeys {
                    endorsement_key,
                    storage_root_key: Bytes::copy_from_slice(content),
                };
                let name = login.name.clone();
                self.ask_for_challenge(gateway, name, keys);
                Ok(())
            }
            TpmStep::Parts { rest, number } => {
                self.send_part(rest, number, out);
                Ok(())
            }
            TpmStep::Token => {
                let name = login.name.clone();
                let Ok(token) = std::str::from_utf8(content) else {
                    return Err(self.refuse_sasl("the token is not UTF-8", out));
                };
                self.judge_token(gateway, name, token.to_owned());
                Ok(())
            }
            // Nothing is read while something is judged.
            TpmStep::Judged => Err(End::protocol("a SASL response without a challenge")),
        }
    }

    fn ask_for_challenge(&mut self, gateway: Arc<dyn ProvisioningGateway>, name: Resource, keys: TpmKeys) {
        self.wait(async move {
            let access = TpmAccess {
                id_scope: &name.id_scope,
                registration_id: &name.registration_id,
                keys: &keys,
            };
            let outcome = gateway.challenge(access).await;
            let done: Done = Box::new(move |core, out| match outcome {
                Ok(blob) => {
                    core.send_part(blob, 0, out);
                    Ok(())
                }
                Err(error) => Err(core.refuse_registration(&error, out)),
            });
            done
        });
    }

    /// Sends the next part of an activation blob.
    fn send_part(&mut self, mut rest: Bytes, number: u8, out: &mut Vec<u8>) {
        let part = rest.split_to(rest.len().min(PART_BYTES));
        let is_last = rest.is_empty();
        let mut challenge = vec![PART | (number & PART_NUMBER)];
        if is_last {
            challenge[0] |= LAST_PART;
        }
        challenge.extend_from_slice(&part);
        if let Some(login) = &mut self.registering().tpm {
            login.step = match is_last {
                true => TpmStep::Token,
                false => TpmStep::Parts {
                    rest,
                    number: number.wrapping_add(1),
                },
            };
        }
        self.challenge(&challenge, out);
    }

    fn challenge(&mut self, challenge: &[u8], out: &mut Vec<u8>) {
        self.machine.sasl_challenge(challenge, out);
        self.release_hold();
    }

    /// A link for a registration.
    pub(super) fn attach_registration(
        &mut self,
        link: LinkId,
        name: Resource,
        attach: &Attach<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let proven = self.registering().proven.clone();
        if let Some(proven) = proven {
            if !proven.covers(&name) {
                let failure = Failure::unauthorized("another registration was proven on this connection");
                return self.refuse(link, &failure, out);
            }
            self.agree_registration(link, attach, out);
            return Ok(());
        }
        let Some(gateway) = self
            .provisioning()
            .filter(|_| !self.login.certificates.is_empty())
        else {
            let failure = Failure::unauthorized("neither a token nor a certificate was given");
            return self.refuse(link, &failure, out);
        };
        let (protocol, certificates) = (self.protocol, Arc::clone(&self.login.certificates));
        let mut bytes = Vec::new();
        attach.encode(&mut bytes);
        self.requests += 1;
        self.registering().pending.insert(link);
        self.wait(async move {
            let access = RegistrationAccess {
                id_scope: &name.id_scope,
                registration_id: &name.registration_id,
                credential: Credential::Certificates(&certificates),
                protocol,
            };
            let outcome = gateway.authenticate(access).await;
            let done: Done = Box::new(move |core, out| core.end_judgement(link, name, &bytes, outcome, out));
            done
        });
        Ok(())
    }

    fn end_judgement(
        &mut self,
        link: LinkId,
        name: Resource,
        attach: &[u8],
        outcome: Result<Registrant, Error>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        self.requests = self.requests.saturating_sub(1);
        let is_wanted = self.registering().pending.remove(&link);
        match (outcome, Performative::decode(attach)) {
            (Ok(registrant), Ok((Performative::Attach(attach), _))) => {
                self.prove(name.id_scope, registrant);
                if is_wanted {
                    self.agree_registration(link, &attach, out);
                }
                Ok(())
            }
            (Err(error), _) if is_wanted => {
                let failure = Failure::from(error);
                self.refuse(link, &failure, out)
            }
            // The client did not wait; or what we encoded is no attach, which cannot be.
            _ => Ok(()),
        }
    }

    fn agree_registration(&mut self, link: LinkId, attach: &Attach<'_>, out: &mut Vec<u8>) {
        let kind = match attach.role {
            Role::Sender => Link::RegistrationRequests,
            Role::Receiver => Link::RegistrationAnswers {
                settled: settles(attach),
            },
        };
        let bytes_max = REQUEST_BYTES_MAX as u64 + SECTIONS_BYTES_MAX;
        self.accept_attach(link, kind, attach, bytes_max, out);
    }

    /// A link is gone that was not agreed to yet.
    pub(super) fn judged_link_gone(&mut self, link: LinkId) {
        if let Some(registering) = &mut self.registering {
            registering.pending.remove(&link);
        }
    }

    /// A request of a device.
    pub(super) fn take_registration_request(
        &mut self,
        link: LinkId,
        delivery: &Delivery<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let proven = self
            .registering
            .as_ref()
            .and_then(|registering| registering.proven.clone());
        let (Some(gateway), Some(proven)) = (self.provisioning(), proven) else {
            return Ok(());
        };
        let message = match Message::decode(&delivery.payload) {
            Ok(message) => message,
            Err(error) => {
                let failure = Failure::new(condition::DECODE_ERROR, error.to_string());
                self.reject(link, delivery.id, &failure, out);
                return Ok(());
            }
        };
        let request = Request {
            link,
            delivery: delivery.id,
            settled: delivery.settled,
            correlation_id: message.properties.correlation_id.map(|id| id.to_buf()),
        };
        let asked = read(&proven.registrant, &message);
        let asked = match asked {
            Ok(asked) => asked,
            Err(error) => {
                gateway.note_refusal(proven.registrant.registration_id.as_str(), &error);
                self.reject_registration(&request, &error, out);
                return Ok(());
            }
        };
        self.requests += 1;
        self.wait(async move {
            let registrant = &proven.registrant;
            let outcome = match asked {
                Asked::Register(body) => gateway.register(registrant, body.payload).await,
                Asked::Status(operation_id) => gateway.operation(registrant, &operation_id).await,
            };
            let done: Done = Box::new(move |core, out| {
                core.requests = core.requests.saturating_sub(1);
                match outcome {
                    Ok(registration) => core.answer_registration(&request, &registration, out),
                    Err(error) => core.reject_registration(&request, &error, out),
                }
                Ok(())
            });
            done
        });
        Ok(())
    }

    /// Settles a request, then answers it.
    fn answer_registration(&mut self, request: &Request, registration: &Registration, out: &mut Vec<u8>) {
        if !request.settled {
            self.accept(request.link, request.delivery, request.delivery, out);
        }
        let (_, retry_after) = dps::standing(registration);
        let mut message = Vec::new();
        Writer::new(&mut message)
            .properties(&Properties {
                correlation_id: request.correlation_id.as_ref().map(MessageIdBuf::as_id),
                ..Properties::default()
            })
            .application_properties(|map| {
                for name in RETRY_AFTER_NAMES.iter().filter(|_| retry_after.is_some()) {
                    map.string(name, &Value::Int(seconds(retry_after)));
                }
            })
            .data(operation_json(registration, true).as_bytes());
        let session = request.link.session();
        let answers = self.links.iter().filter_map(|(link, kind)| match kind {
            Link::RegistrationAnswers { settled } => Some((link.session() != session, *link, *settled)),
            _ => None,
        });
        // One of the same session, if there is one.
        if let Some((_, link, settled)) = answers.min_by_key(|(elsewhere, link, _)| (*elsewhere, *link)) {
            self.send(link, message, settled, out);
        }
    }

    /// Refuses a request. Clients read the description as a JSON object and look for the time to wait in the map.
    fn reject_registration(&mut self, request: &Request, error: &Error, out: &mut Vec<u8>) {
        if request.settled {
            return;
        }
        let (_, retry_after, body) = dps::failure(error, self.shared.clock.now());
        let mut info = MapBuf::new();
        for name in RETRY_AFTER_NAMES.iter().filter(|_| retry_after.is_some()) {
            info.symbol(name, &Value::Int(seconds(retry_after)));
        }
        let error = AmqpError {
            info: retry_after.is_some().then(|| info.as_map()),
            ..AmqpError::new(error::row(error.code).amqp_condition, &body)
        };
        let state = DeliveryState::Rejected(Some(error));
        let session = request.link.session();
        self.machine
            .settle(session, [request.delivery], &state, true, out);
    }
}

fn seconds(retry_after: Option<u64>) -> i32 {
    retry_after
        .and_then(|seconds| i32::try_from(seconds).ok())
        .unwrap_or(0)
}

/// A request that is under way.
struct Request {
    link: LinkId,
    delivery: u32,
    settled: bool,
    correlation_id: Option<MessageIdBuf>,
}

/// What it asks for.
enum Asked {
    Register(DeviceRegistrationDto),
    Status(String),
}

fn read(registrant: &Registrant, message: &Message<'_>) -> Result<Asked, Error> {
    let invalid = |text: &str| Error::new(ErrorCode::ArgumentInvalid, text);
    let property = |name: &str| {
        let properties = message.application_properties.as_ref()?;
        properties.get(name)?.as_str()
    };
    match amqp_request(property)? {
        AmqpRequest::Register => {
            let body = message
                .body
                .as_bytes()
                .ok_or_else(|| invalid("the body is not one piece of data"))?;
            if body.len() > REQUEST_BYTES_MAX {
                let text = "a request has at most 96 KB";
                return Err(Error::new(ErrorCode::MessageTooLarge, text));
            }
            dps::registration_body(registrant, body).map(Asked::Register)
        }
        AmqpRequest::Status { operation_id } => Ok(Asked::Status(operation_id)),
    }
}
