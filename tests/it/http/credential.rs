//! Which header values are a credential, over a server.

use super::*;
use crate::support::wire::get;

#[tokio::test]
async fn fault_46_scheme_has_any_case_and_spaces() {
    let issuer = issuer();
    let address = start(&issuer).await;
    for value in [
        format!("bearer {ONE}"),
        format!("BEARER {ONE}"),
        format!("bEARER {ONE}"),
        format!("Bearer  {ONE}"),
        format!("Bearer          {ONE}"),
        // A server removes white space around a value (RFC 9110 §5.5).
        format!("  Bearer {ONE}\t "),
    ] {
        let answer = get(address, "/whoami")
            .header("authorization", &value)
            .send()
            .await;
        assert_eq!(
            (answer.status, answer.body.as_str()),
            (200, "org_one"),
            "{value}"
        );
    }
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test]
async fn fault_45_malformed_credentials_are_400() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let values: Vec<Vec<u8>> = vec![
        format!("Bearer {ONE}, Bearer {TWO}").into(),
        format!("Bearer {ONE},Basic abc").into(),
        format!("Bearer {ONE} {TWO}").into(),
        format!("Bearer\t{ONE}").into(),
        format!("Bearer \"{ONE}\"").into(),
        format!("Bearer {ONE};").into(),
        format!("Bearer: {ONE}").into(),
        "Bearer k_tést_0123456789".into(),
        b"Bearer \xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8".to_vec(),
        b"\xff\xfe 12345678".to_vec(),
        b"Bearer 1234567".to_vec(),
        b"Bearer ============".to_vec(),
        b"Bearer abcd=efgh".to_vec(),
        [b"Bearer ".as_slice(), &[b'a'; 513]].concat(),
    ];
    for value in values {
        let answer = get(address, "/whoami")
            .header("authorization", &value)
            .send()
            .await;
        assert_eq!(answer.status, 400, "{:?}", String::from_utf8_lossy(&value));
        assert_eq!(answer.code(), "credential-malformed");
    }
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test]
async fn fault_45_repeated_header_is_400() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let one = format!("Bearer {ONE}");
    let pairs = [
        [one.as_str(), one.as_str()],
        [&one, "Basic abc"],
        ["Basic abc", &one],
        [&one, ""],
        ["", &one],
        ["Basic abc", "Basic abc"],
    ];
    // Once while the key is unknown, once while its result is cached.
    for _ in 0..2 {
        for [first, second] in pairs {
            let answer = get(address, "/whoami")
                .header("authorization", first)
                .header("x-between", "1")
                .header("Authorization", second)
                .send()
                .await;
            assert_eq!(answer.status, 400, "{first} | {second}");
        }
        assert_eq!(get(address, "/whoami").key(ONE).send().await.status, 200);
    }
    assert_eq!(issuer.calls(), 1);
}

#[tokio::test]
async fn fault_45_invalid_header_does_not_reach_the_layer() {
    let issuer = issuer();
    let address = start(&issuer).await;
    let values: [Vec<u8>; 4] = [
        [b"Bearer ".as_slice(), &vec![b'a'; 1 << 20]].concat(),
        b"Bearer k_test\0_one_0123456789".to_vec(),
        format!("Bearer\r\n {ONE}").into(),
        b"Bearer k_test\x7f_one_0123456789".to_vec(),
    ];
    for (n, value) in values.iter().enumerate() {
        let answer = get(address, "/whoami")
            .header("authorization", value)
            .send()
            .await;
        assert!(matches!(answer.status, 400 | 431), "{n}: {}", answer.status);
    }
    assert_eq!(issuer.calls(), 0);
}

#[tokio::test]
async fn shortest_and_longest_keys_are_verified() {
    let issuer = issuer();
    let address = start(&issuer).await;
    for key in ["a".repeat(512), "b".repeat(8), "aZ09-._~+/==".into()] {
        assert_eq!(get(address, "/whoami").key(&key).send().await.status, 401);
        assert_eq!(issuer.last(), Some(key));
    }
}

#[tokio::test]
async fn keys_in_url_and_other_headers_are_ignored() {
    let issuer = issuer();
    let address = start(&issuer).await;
    for path in [
        format!("/whoami?access_token={ONE}"),
        format!("/whoami?api_key={ONE}"),
    ] {
        let answer = get(address, &path)
            .header("x-api-key", ONE)
            .header("proxy-authorization", format!("Bearer {ONE}"))
            .header("cookie", format!("access_token={ONE}"))
            .body(format!("access_token={ONE}"))
            .send()
            .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (401, "credential-missing")
        );
    }
    assert_eq!(issuer.calls(), 0);
}
