//! The key of an instance: two names that come from users, validated before anything else is done with them.
//!
//! Plain Rust. The path that belongs to a key is computed here; what is done at that path is in `storage/`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use hashbrown::Equivalent;

/// The usual limit of file systems for one name, in bytes of UTF-8.
const MAX_NAME_BYTES: usize = 255;

/// The beginning of the names of what this package keeps beside databases (`storage/paths.py`).
const RESERVED: &str = ".chroma_manager";

/// The name of one database: `(file_id, embedding_type)`, each a valid directory name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    file_id: Box<str>,
    embedding_type: Box<str>,
}

/// The reason why a name cannot be part of a key.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part} {value:?} cannot name a directory: it {problem}. Use a name of 1 to 255 bytes without separators or control characters"
)]
pub struct InvalidKey {
    part: &'static str,
    value: String,
    problem: &'static str,
}

impl InvalidKey {
    /// Returns the error for a string that is not valid Unicode (Python's lone surrogates): it cannot name a directory.
    pub fn not_unicode(part: &'static str, value: String) -> Self {
        Self { part, value, problem: "is not valid Unicode" }
    }
}

impl Key {
    /// Creates a key.
    ///
    /// # Errors
    ///
    /// Returns [`InvalidKey`] if a name is empty, `.`, `..`, longer than 255 bytes, begins with `.chroma_manager`, or
    /// contains a separator or a control character.
    pub fn new(file_id: &str, embedding_type: &str) -> Result<Self, InvalidKey> {
        check("file_id", file_id)?;
        check("embedding_type", embedding_type)?;
        Ok(Self { file_id: file_id.into(), embedding_type: embedding_type.into() })
    }

    /// Returns the first half of the key.
    pub fn file_id(&self) -> &str {
        &self.file_id
    }

    /// Returns the second half of the key.
    pub fn embedding_type(&self) -> &str {
        &self.embedding_type
    }

    /// Returns `base_path/file_id/embedding_type`.
    pub fn path(&self, base_path: &Path) -> PathBuf {
        base_path.join(&*self.file_id).join(&*self.embedding_type)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.file_id, self.embedding_type)
    }
}

fn check(part: &'static str, name: &str) -> Result<(), InvalidKey> {
    let problem = match name {
        "" => "is empty",
        "." | ".." => "has a special meaning in a path",
        _ if name.contains(['/', '\\']) => "contains a path separator",
        _ if name.contains('\0') => "contains a NUL",
        _ if name.chars().any(char::is_control) => "contains a control character",
        _ if name.len() > MAX_NAME_BYTES => "is longer than 255 bytes",
        _ if name.starts_with(RESERVED) => "begins with .chroma_manager, which is reserved",
        _ => return Ok(()),
    };
    // The error message quotes the name, which may be megabytes long.
    let value = name.chars().take(MAX_NAME_BYTES).collect();
    Err(InvalidKey { part, value, problem })
}

/// The key of a client among those of its thread: an instance and, for a session, a user.
#[derive(Debug, PartialEq, Eq)]
pub struct ClientKey {
    /// The instance.
    pub instance: Key,
    /// The user of the session, if any. Never part of a path.
    pub user_id: Option<Box<str>>,
}

/// A [`ClientKey`] that borrows its parts, so that a lookup allocates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientKeyRef<'a> {
    /// See [`Key::file_id`].
    pub file_id: &'a str,
    /// See [`Key::embedding_type`].
    pub embedding_type: &'a str,
    /// See [`ClientKey::user_id`].
    pub user_id: Option<&'a str>,
}

impl ClientKey {
    fn as_ref(&self) -> ClientKeyRef<'_> {
        ClientKeyRef {
            file_id: &self.instance.file_id,
            embedding_type: &self.instance.embedding_type,
            user_id: self.user_id.as_deref(),
        }
    }
}

impl Hash for ClientKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_ref().hash(state);
    }
}

impl Equivalent<ClientKey> for ClientKeyRef<'_> {
    fn equivalent(&self, key: &ClientKey) -> bool {
        *self == key.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ordinary_names_are_used_unchanged() {
        for name in ["doc123", "azure", "été 2024.pdf", "..a", "a..", "...", "日本語", "-", " "] {
            let key = Key::new(name, "azure").unwrap();
            assert_eq!(key.to_string(), format!("{name}/azure"));
            assert_eq!(key.path(Path::new("/base")), Path::new("/base").join(name).join("azure"));
        }
    }

    #[test]
    fn names_that_are_paths_are_refused() {
        let long = "é".repeat(128);
        for name in
            ["", ".", "..", "a/b", "/etc", "a\\b", "a\0b", "a\nb", "\u{85}", "\x7f", ".chroma_manager.lock", &long]
        {
            for key in [Key::new(name, "azure"), Key::new("doc", name)] {
                assert!(key.is_err(), "{name:?} was accepted");
            }
        }
    }

    #[test]
    fn a_name_of_exactly_255_bytes_is_accepted() {
        assert!(Key::new(&"a".repeat(255), "azure").is_ok());
        assert!(Key::new(&"a".repeat(256), "azure").is_err());
    }

    #[test]
    fn the_message_names_the_part_and_the_value() {
        let said = Key::new("doc", "../x").unwrap_err().to_string();
        assert!(said.contains("embedding_type") && said.contains("../x") && said.contains("separator"), "{said}");
    }

    proptest! {
        #[test]
        fn a_key_never_leaves_its_base_path(file_id in ".*", embedding_type in ".*") {
            if let Ok(key) = Key::new(&file_id, &embedding_type) {
                let path = key.path(Path::new("/base"));
                let parts: Vec<_> = path.components().collect();
                prop_assert_eq!(parts.len(), 4);
                prop_assert!(parts.iter().all(|part| !matches!(part, std::path::Component::ParentDir)));
            }
        }

        #[test]
        fn a_borrowed_key_finds_the_owned_one(file_id in "[a-c]{1,2}", kind in "[a-c]{1,2}", user in proptest::option::of("[a-c]{0,2}")) {
            let owned = ClientKey { instance: Key::new(&file_id, &kind).unwrap(), user_id: user.as_deref().map(Into::into) };
            let map: hashbrown::HashMap<_, _> = [(owned, 1)].into_iter().collect();
            prop_assert_eq!(map.get(&ClientKeyRef { file_id: &file_id, embedding_type: &kind, user_id: user.as_deref() }), Some(&1));
            prop_assert_eq!(map.get(&ClientKeyRef { file_id: &file_id, embedding_type: &kind, user_id: Some("other") }), None);
        }
    }
}
