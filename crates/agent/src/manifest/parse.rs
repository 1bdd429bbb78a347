//! From desired properties to a [`Deployment`].

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{Fields, kind};
use super::{
    Deployment, DesiredStatus, EDGE_AGENT, EDGE_HUB, ManifestError, ModuleSpec, PullPolicy, Registry,
    RestartPolicy, RuntimeSettings, STARTUP_ORDER_DEFAULT, StatusCode, image, limits, options,
};
use crate::body::INJECTED;

const STATUS: &[(&str, DesiredStatus)] = &[
    ("running", DesiredStatus::Running),
    ("stopped", DesiredStatus::Stopped),
];
const RESTART: &[(&str, RestartPolicy)] = &[
    ("never", RestartPolicy::Never),
    ("on-failure", RestartPolicy::OnFailure),
    ("on-unhealthy", RestartPolicy::OnUnhealthy),
    ("always", RestartPolicy::Always),
];
const PULL: &[(&str, PullPolicy)] = &[("on-create", PullPolicy::OnCreate), ("never", PullPolicy::Never)];
const TYPE: &[(&str, ())] = &[("docker", ())];

/// Reads desired properties as the twin has them (with `$version`). `parent` is what `$upstream` stands for.
///
/// # Errors
/// [`ManifestError`] with code 400, 412 or 417.
pub fn parse(desired: &Map<String, Value>, parent: Option<&str>) -> Result<Deployment, ManifestError> {
    if desired.keys().all(|key| key.starts_with('$')) {
        return Err(ManifestError {
            code: StatusCode::ConfigEmpty,
            field: String::new(),
            problem: "This device has an empty configuration for the edge agent. Please set a deployment \
                      manifest."
                .to_owned(),
        });
    }
    schema_version(desired)?;
    let root = Fields::root(desired);
    let reader = Reader { parent };
    let (edge_agent, edge_hub) = reader.system_modules(&root)?;
    Ok(Deployment {
        version: desired.get("$version").and_then(Value::as_u64).unwrap_or(0),
        runtime: reader.runtime(&root)?,
        edge_agent,
        edge_hub,
        modules: reader.modules(&root)?,
    })
}

/// Checks `schemaVersion`: major 1, not above 1.1.0.
///
/// # Errors
/// Code 412.
pub fn schema_version(desired: &Map<String, Value>) -> Result<(), ManifestError> {
    let refuse = |problem: String| ManifestError {
        code: StatusCode::InvalidSchemaVersion,
        field: "schemaVersion".to_owned(),
        problem,
    };
    let text = match desired.get("schemaVersion") {
        None | Some(Value::Null) => return Err(refuse("missing; expected 1.0 or 1.1".to_owned())),
        Some(Value::String(text)) => text.trim(),
        Some(other) => {
            return Err(refuse(format!(
                "{} instead of a text such as \"1.1\"",
                kind(other)
            )));
        }
    };
    let parts: Option<Vec<u32>> = text.split('.').map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        Some([1, 0] | [1, 0, _] | [1, 0, _, _] | [1, 1] | [1, 1, 0]) => Ok(()),
        Some(parts) if (2..=4).contains(&parts.len()) => Err(refuse(format!(
            "{text:?} is not known here; this agent reads 1.0 and 1.1"
        ))),
        _ => Err(refuse(format!("{text:?} is not a version; expected 1.0 or 1.1"))),
    }
}

/// What a module entry must have, and what it falls back to.
struct Rules {
    status: Option<DesiredStatus>,
    restart: Option<RestartPolicy>,
    order: u32,
}

struct Reader<'a> {
    parent: Option<&'a str>,
}

impl Reader<'_> {
    fn runtime(&self, root: &Fields<'_>) -> Result<RuntimeSettings, ManifestError> {
        let Some(runtime) = root.object("runtime")? else {
            return Err(root.wrong("runtime", "missing"));
        };
        runtime.word("type", TYPE, None)?;
        let Some(settings) = runtime.object("settings")? else {
            return Ok(RuntimeSettings::default());
        };
        let mut registries = Vec::new();
        if let Some(entries) = settings.object("registryCredentials")? {
            for (name, value) in entries.entries() {
                let entry = entries.as_object(name, value)?;
                if registries.len() == limits::REGISTRIES_MAX {
                    let problem = format!("more than {} registries", limits::REGISTRIES_MAX);
                    return Err(settings.wrong("registryCredentials", problem));
                }
                let address = entry.needed_text("address")?.trim();
                registries.push(Registry {
                    name: name.clone(),
                    address: image::upstream(address, &entry.path("address"), self.parent)?,
                    username: entry.needed_text("username")?.to_owned(),
                    password: entry.needed_text("password")?.to_owned(),
                });
            }
        }
        Ok(RuntimeSettings {
            min_docker_version: settings.text("minDockerVersion")?.unwrap_or_default().to_owned(),
            logging_options: settings.text("loggingOptions")?.unwrap_or_default().to_owned(),
            registries,
        })
    }

    fn system_modules(
        &self,
        root: &Fields<'_>,
    ) -> Result<(Option<ModuleSpec>, Option<ModuleSpec>), ManifestError> {
        let Some(system) = root.object("systemModules")? else {
            return Ok((None, None));
        };
        let agent = Rules {
            status: Some(DesiredStatus::Running),
            restart: Some(RestartPolicy::Always),
            order: 0,
        };
        let hub = Rules {
            status: None,
            restart: Some(RestartPolicy::Always),
            order: STARTUP_ORDER_DEFAULT,
        };
        let one = |name: &str, rules: &Rules| match system.object(name)? {
            None => Ok(None),
            Some(fields) => self.module(name, &fields, rules).map(Some),
        };
        let mut edge_agent = one(EDGE_AGENT, &agent)?;
        if let Some(spec) = &mut edge_agent {
            // Fixed, whatever the manifest says (edge.md 2.2).
            spec.status = DesiredStatus::Running;
            spec.restart_policy = RestartPolicy::Always;
            spec.startup_order = 0;
        }
        Ok((edge_agent, one(EDGE_HUB, &hub)?))
    }

    fn modules(&self, root: &Fields<'_>) -> Result<BTreeMap<String, ModuleSpec>, ManifestError> {
        let rules = Rules {
            status: None,
            restart: Some(RestartPolicy::OnUnhealthy),
            order: STARTUP_ORDER_DEFAULT,
        };
        let mut modules = BTreeMap::new();
        let Some(entries) = root.object("modules")? else {
            return Ok(modules);
        };
        for (name, value) in entries.entries() {
            check_name(&entries, name)?;
            if modules.len() == limits::MODULES_MAX {
                let problem = format!("more than {} modules", limits::MODULES_MAX);
                return Err(root.wrong("modules", problem));
            }
            let fields = entries.as_object(name, value)?;
            modules.insert(name.clone(), self.module(name, &fields, &rules)?);
        }
        Ok(modules)
    }

    fn module(&self, name: &str, fields: &Fields<'_>, rules: &Rules) -> Result<ModuleSpec, ManifestError> {
        fields.word("type", TYPE, None)?;
        let Some(settings) = fields.object("settings")? else {
            return Err(fields.wrong("settings", "missing"));
        };
        Ok(ModuleSpec {
            name: name.to_owned(),
            version: fields.text("version")?.unwrap_or_default().to_owned(),
            image: image::normalise(
                settings.needed_text("image")?,
                &settings.path("image"),
                self.parent,
            )?,
            digest: settings.text("digest")?.map(str::to_owned),
            create_options: options::read(&settings)?,
            env: env(fields)?,
            status: fields.word("status", STATUS, rules.status)?,
            restart_policy: fields.word("restartPolicy", RESTART, rules.restart)?,
            pull_policy: fields.word("imagePullPolicy", PULL, Some(PullPolicy::OnCreate))?,
            startup_order: order(fields, rules.order)?,
        })
    }
}

/// A name becomes the name of a container, of a folder and of an identity.
fn check_name(modules: &Fields<'_>, name: &str) -> Result<(), ManifestError> {
    let fits = name.len() <= limits::MODULE_NAME_MAX
        && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    if !fits {
        let problem = format!(
            "a module name has at most {} letters, digits, _ and -, and begins with a letter or digit",
            limits::MODULE_NAME_MAX
        );
        return Err(modules.wrong(name, problem));
    }
    if [EDGE_AGENT, EDGE_HUB]
        .iter()
        .any(|system| system.eq_ignore_ascii_case(name))
    {
        return Err(modules.wrong(name, "this name belongs under systemModules"));
    }
    Ok(())
}

fn order(fields: &Fields<'_>, default: u32) -> Result<u32, ManifestError> {
    match fields.get("startupOrder") {
        None => Ok(default),
        Some(value) => value
            .as_u64()
            .and_then(|number| u32::try_from(number).ok())
            .ok_or_else(|| fields.wrong("startupOrder", "not a whole number from 0 to 4294967295")),
    }
}

fn env(fields: &Fields<'_>) -> Result<BTreeMap<String, String>, ManifestError> {
    let mut env = BTreeMap::new();
    let Some(entries) = fields.object("env")? else {
        return Ok(env);
    };
    for (name, value) in entries.entries() {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(entries.wrong(name, "the name of a variable is not empty and has no ="));
        }
        if INJECTED.contains(&name.as_str()) {
            let problem = "duplicate env var key: the runtime sets this variable itself";
            return Err(entries.wrong(name, problem));
        }
        if env.len() == limits::ENV_MAX {
            return Err(fields.wrong("env", format!("more than {} variables", limits::ENV_MAX)));
        }
        let entry = entries.as_object(name, value)?;
        let text = match entry.get("value") {
            Some(Value::String(text)) if text.contains('\0') => {
                return Err(entry.wrong("value", "a value has no NUL character"));
            }
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            Some(Value::Bool(flag)) => flag.to_string(),
            Some(other) => {
                let problem = format!("{} instead of a text, a number, true or false", kind(other));
                return Err(entry.wrong("value", problem));
            }
            None => return Err(entry.wrong("value", "missing")),
        };
        env.insert(name.clone(), text);
    }
    Ok(env)
}
