//! Client of a TPM 2.0, for devices that a provisioning service knows by their TPM: reads endorsement key and storage root
//! key, takes the key that a service makes for the TPM, and signs with it. The key is in the clear nowhere but inside.
//!
//! Pure Rust, over a device node or a socket of `swtpm`, with the commands that are needed for this and no others. Which
//! commands in which order, and where keys are kept in the TPM, is what the device SDKs do, so that one TPM serves both:
//!
//! | For | Commands |
//! |---|---|
//! | endorsement key (kept at 0x81010001), storage root key (0x81000001) | `TPM2_ReadPublic`; in a TPM without them `TPM2_CreatePrimary`, `TPM2_EvictControl` |
//! | taking a key ([`Tpm::activate`]) | `TPM2_StartAuthSession`, `TPM2_PolicySecret`, `TPM2_ActivateCredential`, `TPM2_Import` |
//! | signing ([`Tpm::sign`]) | `TPM2_Load`, `TPM2_HMAC`; for long texts `TPM2_HMAC_Start`, `TPM2_SequenceUpdate`, `TPM2_SequenceComplete` |
//!
//! Other than the SDKs, which keep the service's key inside the TPM, this crate hands it out as a [`SealedKey`]: encrypted by
//! the TPM, for the TPM. It takes no room there, several can exist at once, and one from before the TPM was cleared is told
//! ([`TpmError::ForeignKey`]).
//!
//! ```no_run
//! use holdfast_tpm::{Config, Tpm};
//! # fn example(blob: &[u8]) -> Result<(), holdfast_tpm::TpmError> {
//! let config = Config { address: "device:/dev/tpmrm0".parse().unwrap_or_default(), ..Config::default() };
//! let mut tpm = Tpm::open(&config)?;
//! let keys = tpm.public_keys()?;        // what the service must know
//! let key = tpm.activate(blob)?;        // what the service answers
//! let signature = tpm.sign(&key, b"hub.example%2Fdevices%2Fpress-4\n1800000000")?;
//! # Ok(()) }
//! ```
//!
//! Commands and answers go between processor and TPM in the clear, as those of the SDKs do: somebody with probes on the
//! board's bus could read the key while it is taken.

mod address;
mod error;
mod keys;
mod response_code;
mod tpm;
mod transport;
mod wire;

pub use address::{Address, AddressError};
pub use error::TpmError;
pub use keys::{PublicKeys, SealedKey};
pub use response_code::ResponseCode;
pub use tpm::{Config, Description, Tpm};
