//! JSON that overflows the stack of a parser into `serde_json::Value`.

/// Returns at most so many bytes of JSON that has a text behind the private name of `RawValue`, which has another one, and so on.
/// `Value` parses each of them with another recursion limit.
pub(crate) fn nested_documents(max_bytes: usize) -> String {
    // The depth that one document may have, without what a test puts around it.
    const DEPTH: usize = 100;

    let (open, close) = ("[".repeat(DEPTH), "]".repeat(DEPTH));
    let mut json = "1".to_owned();
    loop {
        // So written, a level makes each escape of the level within it longer by a few bytes only.
        let text = json.replace('\\', "\\u005c").replace('"', "\\u0022");
        let next = format!(r#"{open}{{"$serde_json::private::RawValue":"{text}""#);
        if next.len() + 1 + DEPTH > max_bytes {
            return json + "}" + &close;
        }
        // The brackets of texts are not closed: the parser does not get there.
        json = next;
    }
}
