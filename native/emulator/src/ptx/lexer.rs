//! Words and signs of a PTX text, with their lines.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A name, a directive, an opcode with its modifiers, or a number.
    Word,
    /// What stands between quotation marks.
    Text,
    Sign(u8),
}

#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    pub kind: Kind,
    pub text: &'a str,
    pub line: u32,
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'%' | b'.')
}

/// All tokens of a text; comments are left out.
pub fn tokens(text: &str) -> Result<Vec<Token<'_>>, String> {
    let bytes = text.as_bytes();
    let (mut at, mut line, mut all) = (0, 1, Vec::with_capacity(text.len() / 4));
    while let Some(&byte) = bytes.get(at) {
        let start = at;
        match byte {
            b'\n' => {
                line += 1;
                at += 1;
            }
            b' ' | b'\t' | b'\r' | 0 => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at = text[at..].find('\n').map_or(bytes.len(), |n| at + n);
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text[at..].find("*/").map(|n| at + n + 2);
                let end = end.ok_or_else(|| format!("line {line}: a comment without an end"))?;
                line += text[at..end].matches('\n').count() as u32;
                at = end;
            }
            b'"' => {
                let end = text[at + 1..].find('"').map(|n| at + 1 + n);
                let end = end.ok_or_else(|| format!("line {line}: a string without an end"))?;
                all.push(Token { kind: Kind::Text, text: &text[at + 1..end], line });
                at = end + 1;
            }
            _ if in_word(byte) => {
                while at < bytes.len() && (in_word(bytes[at]) || in_pair(bytes, at)) {
                    at += 1;
                }
                all.push(Token { kind: Kind::Word, text: &text[start..at], line });
            }
            _ if byte.is_ascii_graphic() => {
                at += 1;
                all.push(Token { kind: Kind::Sign(byte), text: &text[start..at], line });
            }
            _ => return Err(format!("line {line}: the byte {byte:#04x}")),
        }
    }
    Ok(all)
}

/// Whether a colon is one of two, as in `shared::cta`.
fn in_pair(bytes: &[u8], at: usize) -> bool {
    let colon = |i: usize| bytes.get(i) == Some(&b':');
    colon(at) && (colon(at + 1) || (at > 0 && colon(at - 1)))
}
