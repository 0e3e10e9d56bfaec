//! Reading configuration files: the same rules and the same messages for all of them.

use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Its content is not valid: syntax, an unknown key, a wrong type. The source has line and
    /// column.
    #[error("{} is not a valid configuration", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        source: Box<toml::de::Error>,
    },
}

/// Reads a TOML file into `T`, whose unknown keys should be errors (`deny_unknown_fields`).
///
/// # Errors
/// [`ConfigError`] names the file and, for its content, line, column and key.
pub fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.into(),
        source,
    })?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse {
        path: path.into(),
        source: Box::new(source),
    })
}

/// Checks the sample of a configuration file that packages install: it is read as a `T`, also with
/// the keys that are commented out (a `#` without a space after it), and it has all keys of `T`.
///
/// # Errors
/// The mistake in it.
pub fn check_sample<T: DeserializeOwned>(sample: &str) -> Result<(), String> {
    let switched_on = |line: &str| {
        let key = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
        key.unwrap_or(line).to_owned() + "\n"
    };
    let whole: String = sample.lines().map(switched_on).collect();
    for text in [sample, &whole] {
        toml::from_str::<T>(text).map_err(|e| e.to_string())?;
    }
    // The parser lists all of its keys in the error for an unknown one.
    const OTHER: &str = "nosuch";
    let Err(said) = toml::from_str::<T>(&format!("{OTHER} = 1")) else {
        return Err("unknown keys are not refused".into());
    };
    let said = said.to_string();
    let names = said.split('`').skip(1).step_by(2);
    let keys: Vec<&str> = names.filter(|key| *key != OTHER).collect();
    let has: toml::Table = toml::from_str(&whole).map_err(|e| e.to_string())?;
    match keys.len() == has.len() && keys.iter().all(|key| has.contains_key(*key)) {
        true => Ok(()),
        false => Err(format!("keys {keys:?}, in the sample {has:?}")),
    }
}

/// Replaces a leading `~/` by the home directory.
pub fn expand_home(path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::var_os("HOME")) {
        (Ok(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path.to_path_buf(),
    }
}

/// Whether a path is on a network file system (statfs(2)). Files of one host alone, and files that
/// need reliable locks, do not belong there. For a path that does not exist yet, its nearest
/// existing parent is checked.
pub fn is_on_network(path: &Path) -> bool {
    const NFS: i64 = 0x6969;
    const CIFS: i64 = 0xff53_4d42;
    const SMB2: i64 = 0xfe53_4d42;
    let kind = path
        .ancestors()
        .find_map(|parent| rustix::fs::statfs(parent).ok())
        .map_or(0, |stat| stat.f_type);
    [NFS, CIFS, SMB2].contains(&kind)
}

/// This host's name from gethostname(2), in lower case.
pub fn host_name() -> String {
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .to_ascii_lowercase();
    if name.is_empty() {
        "localhost".into()
    } else {
        name
    }
}
