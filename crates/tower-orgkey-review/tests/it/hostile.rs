//! Names are the words of tenants.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use sha2::{Digest as _, Sha256};
use tower_orgkey_review::{
    Decision, EvidenceBuilder, KeyList, PreviousReview, Review, ReviewPolicy, ReviewReport,
};

use crate::lines::{Line, allowed, heartbeat, numbered};
use crate::nested::nested_documents;
use crate::{fold, key, list, now, python};

const NAMES: [&str; 8] = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert(1)>",
    "</style><svg onload=alert(1)>",
    "=cmd|' /C calc'!A0",
    "@SUM(1+1)*cmd",
    "a,b\"c\r\nd",
    "user\u{202e}gnp.exe",
    "&lt;javascript:alert(1)//",
];

/// A report with something in each of its parts.
pub(crate) fn report() -> ReviewReport {
    #[allow(
        clippy::redundant_closure_for_method_calls,
        reason = "the method is of one lifetime"
    )]
    with_review(|review| review.report())
}

/// Calls a function with the review of that report.
pub(crate) fn with_review<T>(use_review: impl FnOnce(&Review<'_>) -> T) -> T {
    let keys = NAMES.iter().enumerate().map(|(n, name)| {
        let mut key = key(&format!("key_{n}<i>"), "org_<b>1", &["beat", "<u>scope"]);
        key.name = String::from(*name);
        key.suffix = Some("<s>x".to_owned());
        key.status = String::from(if n == 7 { "<em>" } else { "active" });
        key.kind = String::from(if n == 6 { "<kind>" } else { "organization" });
        key
    });
    let requests = (0..30).map(|n| crate::lines::Line {
        code: "<odd>",
        ..allowed("org_<b>1", "key_1<i>", now().0 - n, &[&["<q>"]])
    });
    let unguarded = Line {
        policies: Vec::new(),
        ..allowed("org_<b>1", "key_2<i>", now().0, &[])
    };
    let lines = heartbeat(100, 0).into_iter().chain(requests);
    let evidence = fold(&numbered(1, 0, lines.chain([unguarded])));
    let policy = ReviewPolicy::new().name_template("{org}<a>".parse().unwrap());
    let keys = list(keys);
    let first = Review::of(&list([]), &evidence, &policy).report();
    let decisions = [Decision {
        finding: "unused org_<b>1 key_0<i>".to_owned(),
        decision: "<keep>".to_owned(),
        reviewer: "=reviewer<b>".to_owned(),
        reason: "<reason>".to_owned(),
        until: None,
    }];
    let previous = PreviousReview::of(&first);
    let review = Review::of(&keys, &evidence, &policy)
        .previous(&previous)
        .decisions(&decisions);
    use_review(&review)
}

#[tokio::test]
async fn fault_197_hostile_names_are_text_on_the_page() {
    let report = report();
    let page = report.to_html();
    let file = std::env::temp_dir().join(format!("orgkey-review-{}.html", std::process::id()));
    std::fs::write(&file, &page).unwrap();
    let parsed = python::script("page.py", &[file.to_str().unwrap()]).await;
    std::fs::remove_file(&file).unwrap();
    assert_eq!(parsed["unclosed"], serde_json::json!([]));
    assert_eq!(parsed["misplaced"], serde_json::json!([]));
    let allowed = [
        "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "p", "ul",
        "ol", "li", "div", "table", "thead", "tbody", "tr", "th", "td", "br", "code", "bdi",
        "span", "article", "svg", "path",
    ];
    for element in parsed["elements"].as_array().unwrap() {
        assert!(allowed.contains(&element.as_str().unwrap()), "{element}");
    }
    let allowed = [
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "scope",
        "tabindex",
        "role",
        "aria-label",
        "viewbox",
        "width",
        "height",
        "d",
    ];
    for attribute in parsed["attributes"].as_array().unwrap() {
        assert!(
            allowed.contains(&attribute.as_str().unwrap()),
            "{attribute}"
        );
    }
    let text = parsed["text"].as_str().unwrap();
    for name in NAMES.iter().take(5) {
        assert!(text.contains(name), "{name}");
    }
    assert!(text.contains("user\\u{202e}gnp.exe"));
    assert!(!page.contains('\u{202e}'));
    for hostile in [
        "<keep>", "<reason>", "<odd>", "<u>scope", "<s>x", "<em>", "org_<b>1",
    ] {
        assert!(text.contains(hostile), "{hostile}");
        assert!(!page.contains(hostile), "{hostile}");
    }
    let one = report.keys.iter().find(|key| key.unguarded > 0).unwrap();
    let unguarded = format!("{} requests without a recorded policy", one.unguarded);
    assert!(text.contains(&unguarded), "{unguarded}");
    let style = parsed["style"].as_str().unwrap();
    let hash = BASE64_STANDARD.encode(Sha256::digest(style));
    assert!(
        page.contains(&format!("style-src &#39;sha256-{hash}&#39;"))
            || page.contains(&format!("style-src 'sha256-{hash}'")),
        "{hash}"
    );
}

#[tokio::test]
async fn hostile_names_are_cells_and_no_formulas() {
    let report = report();
    let file = std::env::temp_dir().join(format!("orgkey-review-{}.csv", std::process::id()));
    std::fs::write(&file, report.to_csv()).unwrap();
    let rows = python::script("table.py", &[file.to_str().unwrap()]).await;
    std::fs::remove_file(&file).unwrap();
    let rows = rows.as_array().unwrap();
    assert!(rows.len() > NAMES.len());
    let mut names = std::collections::BTreeSet::new();
    for row in rows {
        let row = row.as_object().unwrap();
        assert_eq!(row.len(), 23);
        for (column, cell) in row {
            let cell = cell.as_str().unwrap();
            assert!(
                !cell.starts_with(['=', '+', '-', '@', '\t', '\r']),
                "{column}: {cell}"
            );
            assert!(!cell.contains(['\u{202e}', '\r', '\n']), "{column}: {cell}");
        }
        names.insert(row["name"].as_str().unwrap().to_owned());
    }
    for name in [
        NAMES[0],
        "'=cmd|' /C calc'!A0",
        "'@SUM(1+1)*cmd",
        "a,b\"c\\u{d}\\u{a}d",
        "user\\u{202e}gnp.exe",
    ] {
        assert!(names.contains(name), "{name} {names:?}");
    }
}

#[test]
fn fault_211_nested_documents_do_not_end_a_review() {
    let nested = nested_documents(1024 * 1024 - 1024);
    let product = r#""product":{"name":"tower-orgkey"}"#;
    let lines = [
        nested.clone(),
        format!(r#"{{"metadata":{nested}}}"#),
        format!(r#"{{"metadata":{{{product}}},"class_uid":{nested}}}"#),
        format!(r#"{{"metadata":{{{product}}},"authorizations":{nested}}}"#),
        format!(r#"{{"listed_at":{nested},"api_keys":[]}}"#),
        format!(r#"{{"api_keys":[{{"id":"key_1","name":{nested}}}]}}"#),
        format!(r#"[{{"id":"key_1","other":{nested}}}]"#),
    ];
    let read = move || {
        let text = numbered(1, 0, heartbeat(2, 0)) + &lines.join("\n");
        let mut builder = EvidenceBuilder::new();
        builder.read("a", text.as_bytes(), |_| {}).unwrap();
        let read = builder.finish().lines();
        assert_eq!((read.events, read.malformed, read.foreign), (3, 2, 5));
        let lists = lines[4..].iter().map(|list| {
            let list = KeyList::from_json(list, now());
            list.map_err(|error| error.to_string())
        });
        let lists: Vec<_> = lists.map(|list| list.map(|list| list.len())).collect();
        let error = |text: &str| Err(text.to_owned());
        let expected = [
            error("listed_at is no timestamp"),
            error("key 1 of the list has no id, or a mistyped member"),
            Ok(1),
        ];
        assert_eq!(lists, expected);
    };
    let thread = std::thread::Builder::new().stack_size(2 * 1024 * 1024);
    thread.spawn(read).unwrap().join().unwrap();
}

#[test]
fn a_report_of_one_organization_shows_no_other() {
    let keys = list([
        key("key_one", "org_one", &["beat", "one:x"]),
        key("key_two", "org_two", &["beat", "two:x"]),
        key("key_three", "org_two", &["beat"]),
    ]);
    let requests = (0..40).map(|n| crate::lines::Line {
        code: if n % 2 == 0 {
            "allowed"
        } else {
            "rate-limited"
        },
        ..allowed("org_two", "key_two", now().0 - n, &[&["two:y"], &["beat"]])
    });
    let lines = heartbeat(100, 0).into_iter().chain(requests);
    let evidence = fold(&numbered(0x7777, 0, lines));
    let policy = ReviewPolicy::new().organizations(["org_one"]);
    let decisions = ["one", "two"].map(|org| Decision {
        finding: format!(
            "unused org_{org} key_{}",
            if org == "one" { "one" } else { "three" }
        ),
        decision: format!("decision-{org}"),
        reviewer: String::new(),
        reason: String::new(),
        until: None,
    });
    let mut before = keys.clone();
    before.push(key("key_removed", "org_two", &["beat"]));
    let first = Review::of(&before, &evidence, &policy).report();
    let report = Review::of(&keys, &evidence, &policy)
        .previous(&PreviousReview::of(&first))
        .decisions(&decisions)
        .report();
    let whole = serde_json::to_string(&report).unwrap();
    let one = report.for_organization("org_one");
    let outputs = [
        serde_json::to_string(&one).unwrap(),
        one.to_html(),
        one.to_csv(),
        one.to_ocsf(),
    ];
    for other in [
        "org_two",
        "key_two",
        "key_three",
        "key_removed",
        "org_beat",
        "key_beat",
        "two:x",
        "two:y",
        "decision-two",
        "rate-limited",
    ] {
        assert!(whole.contains(other) || other == "two:y", "{other}");
        for output in &outputs {
            assert!(!output.contains(other), "{other}");
        }
    }
    assert!(outputs.iter().all(|output| output.contains("key_one")));
    assert_eq!(one.coverage.events, 0);
    assert_eq!(one.coverage.whole_days, report.coverage.whole_days);
}
