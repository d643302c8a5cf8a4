//! Reports that compute their keys and findings while they are written.

use crate::hostile;

#[test]
fn streamed_reports_are_those_in_memory() {
    hostile::with_review(|review| {
        let (streamed, report) = (review.stream(), review.report());
        let text = |write: &dyn Fn(&mut Vec<u8>) -> std::io::Result<()>| {
            let mut bytes = Vec::new();
            write(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(text(&|out| streamed.write_html(out)), report.to_html());
        assert_eq!(text(&|out| streamed.write_csv(out)), report.to_csv());
        assert_eq!(text(&|out| streamed.write_ocsf(out)), report.to_ocsf());
        assert_eq!(
            serde_json::to_string(&streamed).unwrap(),
            serde_json::to_string(&report).unwrap()
        );
        assert!(streamed.keys().eq(report.keys.iter().cloned()));
        assert!(streamed.findings().eq(report.findings.iter().cloned()));
        let open = report.findings.iter().filter(|it| it.is_open()).count();
        assert!(open > 0 && open < report.findings.len());
        assert_eq!(streamed.finding_count(), report.findings.len());
        assert_eq!(streamed.open_count(), open);
        assert_eq!(streamed.key_count(), report.keys.len());
        assert_eq!(streamed.coverage(), &report.coverage);
        for org in ["org_<b>1", "org_beat", "org_none"] {
            let part = streamed.for_organization(org);
            assert_eq!(part, report.for_organization(org), "{org}");
            assert_eq!(part.keys.is_empty(), org == "org_none");
        }
    });
}

#[test]
fn pages_and_tables_stop_at_an_error() {
    /// A full disk.
    struct Full;

    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    hostile::with_review(|review| {
        let report = review.stream();
        report.write_html(Full).unwrap_err();
        report.write_csv(Full).unwrap_err();
        report.write_ocsf(Full).unwrap_err();
        serde_json::to_writer(Full, &report).unwrap_err();
    });
}
