//! Join tokens: a host or user shows one once to get a certificate, and recognises the right
//! coordinator by it.

use ring::rand::SecureRandom;
use std::fmt::{self, Write};

/// The prefix of every token: the version of its form.
const FORM: &str = "mz1";

/// `mz1.ROOT.ID.SECRET`: its holder may join once, under the name that it was made for, and trusts
/// only a coordinator below that root.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// SHA-256 of the root's public key (its SubjectPublicKeyInfo, RFC 5280 §4.1): the pin.
    pub root: [u8; 32],
    /// Id by which the coordinator finds it; not secret.
    pub id: [u8; 4],
    /// The secret. The coordinator keeps only its hash.
    pub secret: [u8; 16],
}

/// A text is not a token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "that is not a join token, which looks like {FORM}.ROOT.ID.SECRET, as `coordinator token \
     create` prints it"
)]
pub struct NoToken;

impl Token {
    /// A new token for the cluster of this root.
    ///
    /// # Errors
    /// The system's random generator failed.
    pub fn new(root: [u8; 32]) -> std::io::Result<Self> {
        let (mut id, mut secret) = ([0; 4], [0; 16]);
        let random = ring::rand::SystemRandom::new();
        random
            .fill(&mut id)
            .and_then(|()| random.fill(&mut secret))
            .map_err(|_| std::io::Error::other("no random numbers"))?;
        Ok(Self { root, id, secret })
    }

    /// Reads a token, with white space around it.
    ///
    /// # Errors
    /// [`NoToken`].
    pub fn parse(text: &str) -> Result<Self, NoToken> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [FORM, root, id, secret] = parts[..] else {
            return Err(NoToken);
        };
        Ok(Self {
            root: bytes(root)?,
            id: bytes(id)?,
            secret: bytes(secret)?,
        })
    }

    /// Its id in hexadecimal, as it is shown.
    pub fn name(&self) -> String {
        hex(&self.id)
    }

    /// The whole token as text, to be handed over once.
    pub fn reveal(&self) -> String {
        format!(
            "{FORM}.{}.{}.{}",
            hex(&self.root),
            hex(&self.id),
            hex(&self.secret)
        )
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.name())
    }
}

/// SHA-256 of these bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    out
}

/// These bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

fn bytes<const N: usize>(text: &str) -> Result<[u8; N], NoToken> {
    let mut out = [0; N];
    if text.len() != 2 * N || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(NoToken);
    }
    for (byte, digits) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| NoToken)?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| NoToken)?;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_shown_and_nothing_else_is_one() {
        let token = Token::new([7; 32]).expect("random numbers");
        assert_eq!(
            Token::parse(&format!(" {}\n", token.reveal())),
            Ok(token.clone())
        );
        assert!(
            !format!("{token:?}").contains(&hex(&token.secret)),
            "a log never shows it"
        );
        let text = token.reveal();
        for bad in [
            "",
            "mz1",
            &text[1..],
            &text[..text.len() - 1],
            &text.replace("mz1", "mz2"),
            &text.replace('.', "é"),
            &format!("{text}.0"),
        ] {
            assert_eq!(Token::parse(bad), Err(NoToken), "{bad}");
        }
    }
}
