//! Removes secrets from arguments before anything is written.
//!
//! By rule, not by guess: values of options and assignments whose name says "secret", credentials in URLs, authorization headers, and
//! tokens of well-known shapes. The digest in the record covers the arguments as they really were, so a redacted record still proves
//! which input was used. Left out: environment and standard input, which are recorded by digest alone.

/// Longest argument that is recorded, bytes; the rest is replaced by its length.
const MAX_ARGUMENT_BYTES: usize = 256;
/// Most arguments that are recorded.
const MAX_ARGUMENTS: usize = 64;
/// Arguments that are recorded together, bytes: beside controls and files they have to fit into an event.
const MAX_RECORDED_BYTES: usize = 8 << 10;
/// What stands in place of a secret.
const REDACTED: &str = "[redacted]";

const SECRET_NAMES: [&str; 16] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "apikey",
    "api-key",
    "api_key",
    "access-key",
    "access_key",
    "private-key",
    "private_key",
    "credential",
    "authorization",
    "cookie",
];
const TOKEN_PREFIXES: [&str; 16] = [
    "ghp_",
    "gho_",
    "ghs_",
    "github_pat_",
    "glpat-",
    "sk-",
    "sk_live_",
    "rk_live_",
    "AKIA",
    "ASIA",
    "xoxb-",
    "xoxp-",
    "eyJ",
    "npm_",
    "AIza",
    "-----BEGIN",
];
/// What ends a value within a word: of a query, a form, a header's list, a document.
const SEPARATORS: [char; 6] = ['&', '?', ';', ',', '{', '}'];
/// What a name or value in a document may stand in.
const QUOTES: [char; 2] = ['"', '\''];
const AUTH_SCHEMES: [&str; 3] = ["bearer ", "basic ", "token "];

/// The arguments as they may be recorded.
pub fn redact_arguments(arguments: &[String]) -> Vec<String> {
    let mut redacted = Vec::with_capacity(arguments.len().min(MAX_ARGUMENTS));
    let (mut value_is_secret, mut bytes) = (false, 0);
    for argument in arguments.iter().take(MAX_ARGUMENTS) {
        let is_option = argument.starts_with('-');
        // Whatever follows: a secret may begin with a dash.
        let was_secret = value_is_secret;
        value_is_secret = is_option && !argument.contains('=') && names_a_secret(argument);
        if was_secret {
            redacted.push(REDACTED.to_owned());
            continue;
        }
        let argument = clip(redact(argument));
        bytes += argument.len();
        if bytes > MAX_RECORDED_BYTES {
            break;
        }
        redacted.push(argument);
    }
    let left = arguments.len() - redacted.len();
    if left > 0 {
        redacted.push(format!("[{left} more arguments]"));
    }
    redacted
}

/// One text as it may be recorded.
pub fn redact(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    // A header such as "Authorization: Bearer …", alone or within an argument.
    if let Some(at) =
        AUTH_SCHEMES.iter().filter_map(|scheme| lower.find(scheme).map(|at| at + scheme.len())).min()
        && lower.contains("authorization")
    {
        return format!("{}{REDACTED}", &text[..at]);
    }
    if let Some((name, value)) = text.split_once(['=', ':']).map(|(name, value)| (name, value.trim_start()))
        && !value.is_empty()
        && !value.starts_with("//")
        && names_a_secret(name)
    {
        return format!("{}{REDACTED}", &text[..text.len() - value.len()]);
    }
    let mut words = Vec::new();
    for word in text.split(' ') {
        words.push(redact_word(word));
        // What follows is its value, and nobody says how long that is.
        if word.ends_with(['=', ':']) && names_a_secret(word) {
            words.push(REDACTED.to_owned());
            break;
        }
    }
    words.join(" ")
}

fn redact_word(word: &str) -> String {
    if let Some(start) = word.find("://").map(|at| at + 3) {
        let scheme = redact_pieces(&word[..start]);
        if scheme != word[..start] {
            // The URL is itself a secret's value.
            return scheme;
        }
        let authority_end = word[start..].find(['/', '?', '#']).map_or(word.len(), |at| start + at);
        if let Some(at) = word[start..authority_end].rfind('@') {
            return format!("{scheme}{REDACTED}{}", redact_pieces(&word[start + at..]));
        }
        return format!("{scheme}{}", redact_pieces(&word[start..]));
    }
    redact_pieces(word)
}

/// Each piece between separators by itself; the separators stay.
fn redact_pieces(word: &str) -> String {
    let (mut redacted, mut is_value) = (String::with_capacity(word.len()), false);
    for piece in word.split_inclusive(SEPARATORS) {
        let (piece, separator) = piece.split_at(piece.trim_end_matches(SEPARATORS).len());
        // A value may hold a separator: what names nothing after a secret is more of it.
        if is_value && !piece.is_empty() && !piece.contains(['=', ':']) {
            continue;
        }
        let shown = redact_piece(piece);
        is_value = shown != piece || is_value && piece.is_empty();
        redacted.push_str(&shown);
        redacted.push_str(separator);
    }
    redacted
}

fn redact_piece(piece: &str) -> String {
    for (at, _) in piece.char_indices().filter(|(at, _)| starts_a_token(piece, *at)) {
        let token = &piece[at..];
        if TOKEN_PREFIXES.iter().any(|prefix| token.starts_with(prefix) && token.len() >= prefix.len() + 8) {
            return format!("{}{REDACTED}", &piece[..at]);
        }
    }
    // Any of them may be the one: in `url=x:token=y` it is the last.
    let mut start = 0;
    for (at, _) in piece.match_indices(['=', ':']) {
        let (name, value) = (&piece[start..at], &piece[at + 1..]);
        start = at + 1;
        if names_a_secret(name) && !value.starts_with("//") && !value.trim_matches(QUOTES).is_empty() {
            let opening = value.len() - value.trim_start_matches(QUOTES).len();
            let closing = value.trim_end_matches(QUOTES).len();
            return format!("{}{REDACTED}{}", &piece[..=at + opening], &value[closing..]);
        }
    }
    piece.to_owned()
}

fn starts_a_token(word: &str, at: usize) -> bool {
    word[..at]
        .chars()
        .next_back()
        .is_none_or(|before| matches!(before, '=' | ':' | '"' | '\'' | ',' | '/' | '('))
}

fn names_a_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|secret| name.contains(secret))
}

fn clip(text: String) -> String {
    if text.len() <= MAX_ARGUMENT_BYTES {
        return text;
    }
    let kept = exchequer_event::name::clip(&text, MAX_ARGUMENT_BYTES);
    format!("{kept}[{} more bytes]", text.len() - kept.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str], expected: &[&str]) {
        let arguments: Vec<_> = arguments.iter().map(|&a| a.to_owned()).collect();
        assert_eq!(redact_arguments(&arguments), expected);
    }

    #[test]
    fn secrets_are_removed_and_the_rest_stays() {
        check(&["-la", "/tmp", "a=b", "key: value"], &["-la", "/tmp", "a=b", "key: value"]);
        check(&["--password=hunter2", "x"], &["--password=[redacted]", "x"]);
        check(&["--token", "abc", "x"], &["--token", "[redacted]", "x"]);
        check(&["--token", "--verbose", "x"], &["--token", "[redacted]", "x"]);
        check(&["--token", "--password", "x"], &["--token", "[redacted]", "[redacted]"]);
        check(&["--password", "-hunter2", "x"], &["--password", "[redacted]", "x"]);
        check(&["x", "--token"], &["x", "--token"]);
        check(&["DB_PASSWORD=x y"], &["DB_PASSWORD=[redacted]"]);
        check(&["https://user:pw@host/p?q=1"], &["https://[redacted]@host/p?q=1"]);
        check(&["-H", "Authorization: Bearer abc.def"], &["-H", "Authorization: Bearer [redacted]"]);
        check(&["ghp_0123456789abcdef"], &["[redacted]"]);
        check(&["run with sk-0123456789abc now"], &["run with [redacted] now"]);
        check(&["x=eyJhbGciOiJFZERTQSJ9"], &["x=[redacted]"]);
        check(&["echo API_KEY=1234 && ls"], &["echo API_KEY=[redacted]"]);
    }

    #[test]
    fn a_secret_is_found_wherever_in_a_word_it_stands() {
        check(&["https://h/p?access_token=abc"], &["https://h/p?access_token=[redacted]"]);
        check(&["https://h/?k=ghp_0123456789abcdef"], &["https://h/?k=[redacted]"]);
        check(&["https://u:p@h/?a=b&pwd=x&c=d"], &["https://[redacted]@h/?a=b&pwd=[redacted]&c=d"]);
        check(&["user=a&password=hunter2"], &["user=a&password=[redacted]"]);
        check(&["{\"user\":\"a\",\"password\":\"x\"}"], &["{\"user\":\"a\",\"password\":\"[redacted]\"}"]);
        check(&["Authorization: abc"], &["Authorization: [redacted]"]);
        check(&["a=1 DB_PASSWORD=a;b y"], &["a=1 DB_PASSWORD=[redacted]; y"]);
        check(&["a=1 Cookie: b c"], &["a=1 Cookie: [redacted]"]);
        check(&["curl -H 'Cookie: a=b; c'"], &["curl -H 'Cookie: [redacted]"]);
        check(&["a=b;c,d", "http://h:80/p?q=1&r={x}"], &["a=b;c,d", "http://h:80/p?q=1&r={x}"]);
    }

    #[test]
    fn long_inputs_are_bounded() {
        let long = "ä".repeat(400);
        let redacted = redact_arguments(&vec![long; 100]);
        assert_eq!(redacted[0], format!("{}[544 more bytes]", "ä".repeat(128)));
        assert!(redacted.iter().map(String::len).sum::<usize>() <= MAX_RECORDED_BYTES + 32);
        assert_eq!(redacted.last().unwrap(), &format!("[{} more arguments]", 101 - redacted.len()));
        let redacted = redact_arguments(&vec!["x".to_owned(); 100]);
        assert_eq!(redacted.len(), MAX_ARGUMENTS + 1);
        assert_eq!(redacted[MAX_ARGUMENTS], "[36 more arguments]");
    }
}
