//! Header fields as an operator writes them.

use super::entry::Entry;

/// A field value (RFC 9110, section 5.5), kept to ASCII, which every client reads alike.
pub(super) fn header_value(entry: &Entry<'_>, what: &str) -> Option<String> {
    let written = entry.text(what)?;
    let sound = !written.is_empty()
        && written.trim_matches([' ', '\t']) == written
        && written.bytes().all(|byte| byte == b'\t' || byte == b' ' || byte.is_ascii_graphic());
    if !sound {
        let hint = format!("write {what} in ASCII, without control characters and without spaces around it");
        entry.refuse(format!("{written:?} cannot stand in a header"), hint);
    }
    sound.then(|| written.to_owned())
}
