//! Which tests stand for which part of what leaves and enters the machine: outputs, shared caches, attestations, the registry
//! protocol. A part without a test can't be written down here, and a test that is renamed is missed.

use std::collections::HashMap;
use std::fs;

use crate::support::lab::workspace;

/// A part, and its tests as `FILE FUNCTION`, files below `builder/tests/it` or, with a slash, below the workspace.
type Row = (&'static str, &'static [&'static str]);

const OUTPUTS: &[Row] = &[
    ("image: name, push, store, several names", &["outputs several_outputs_of_one_build", "registry build_pushes_every_tag"]),
    ("image: push-by-digest, name-canonical", &["outputs several_outputs_of_one_build"]),
    ("image: registry.insecure", &["outputs an_output_may_be_insecure"]),
    ("source-date-epoch, attestation-inline", &["outputs an_output_has_a_time_of_its_own"]),
    (
        "image: dangling-name-prefix, danging-name-empty-only, unpack",
        &["outputs an_image_without_a_name_is_called_by_its_digest"],
    ),
    ("image: prefer-nondist-layers", &["outputs layers_that_may_not_be_given_on_stay_where_they_are"]),
    ("image: oci-mediatypes", &["forms every_compression_is_read_by_others", "shared_cache the_image_is_the_same_in_every_form"]),
    (
        "image: annotations in four scopes",
        &["outputs several_platforms_in_one_build", "registry annotations_travel_with_the_manifest"],
    ),
    ("image: oci-artifact", &["attest/readers registries_others_and_kiln_read_an_attested_image"]),
    ("registry", &["registry a_pushed_image_comes_back_the_same", "outputs several_outputs_of_one_build"]),
    ("oci: dest, tar=true", &["interop both_archive_forms_hold_the_same_image", "readers every_image_is_read_by_other_programs"]),
    ("oci: tar=false, added to", &["outputs a_layout_is_added_to"]),
    ("docker: dest", &["readers every_image_is_read_by_other_programs", "writers what_others_write_is_read"]),
    (
        "docker: into a daemon, context",
        &["handover a_changed_layer_is_all_that_moves", "handover a_named_daemon_has_to_be_there"],
    ),
    ("local: mode=copy|delete", &["files_out a_folder_gets_the_files", "files_out what_is_there_is_replaced_but_never_followed"]),
    ("local: platform-split", &["files_out each_platform_has_a_folder"]),
    ("local: attestation-prefix", &["attest/provenance what_is_said_of_files_lies_beside_them"]),
    ("tar: dest, standard output", &["files_out a_tar_has_owners_and_times"]),
    ("cacheonly; a failing output leaves nothing", &["files_out a_failure_leaves_nothing_half_written"]),
    (
        "several platforms, indexes",
        &["outputs several_platforms_in_one_build", "registry an_index_gives_the_platform_of_the_host"],
    ),
    ("manifest create|inspect", &["outputs a_matrix_is_joined", "outputs a_matrix_of_private_repositories_is_joined"]),
    ("uncompressed, gzip, zstd, estargz, levels", &["forms every_compression_is_read_by_others"]),
    (
        "force-compression of a base",
        &["forms every_compression_is_read_by_others", "readers every_image_is_read_by_other_programs"],
    ),
    ("Docker's media types read as a base", &["registry a_docker_manifest_is_a_base"]),
    (
        "whiteouts, configuration and history as others read them",
        &["readers every_image_is_read_by_other_programs", "conformance every_case_is_what_buildkit_makes"],
    ),
];

const CACHES: &[Row] = &[
    (
        "registry: ref, mode",
        &[
            "shared_cache a_second_store_builds_twenty_steps_without_doing_any",
            "shared_cache max_has_the_steps_of_stages_and_min_has_not",
        ],
    ),
    ("registry: image-manifest, oci-mediatypes, compression", &["shared_cache the_image_is_the_same_in_every_form"]),
    ("ignore-error", &["shared_cache a_cache_that_fails_fails_no_build_unless_asked"]),
    ("inline, BUILDKIT_INLINE_CACHE", &["shared_cache an_image_is_a_cache_of_itself"]),
    (
        "local: dest, src, tag, digest, reset",
        &["cache_places every_place_serves_a_second_store", "cache_places buildkit_uses_the_same_places"],
    ),
    (
        "gha, versions 1 and 2",
        &["cache_places every_place_serves_a_second_store", "registry-client/tests/it/actions.rs entries_of_both_versions"],
    ),
    ("gha: scopes and branches", &["registry-client/tests/it/actions.rs branches_and_rights"]),
    ("s3 keys", &["cache_places every_place_serves_a_second_store", "builder/src/cli/caches/places.rs buckets"]),
    ("s3 answers", &["registry-client/tests/it/s3.rs answers_on_a_script"]),
    ("cacheconfig of BuildKit", &["shared_cache buildkit_and_kiln_read_each_others_caches"]),
    ("lazy layers, lost layers", &["shared_cache what_a_cache_has_lost_is_done_again"]),
    (
        "cache mounts",
        &["cache_places cache_mounts_come_back_and_move_little", "cache_places c78_spoiled_and_hostile_cache_mounts"],
    ),
    ("C78", &["shared_cache c78_a_crafted_image_is_no_cache"]),
    (
        "C79",
        &[
            "shared_cache c79_a_damaged_cache_never_gives_a_wrong_image",
            "shared_cache c79_only_a_cache_with_the_right_signature_is_used",
        ],
    ),
];

const ATTESTATIONS: &[Row] = &[
    (
        "shape in the index; an artifact of its own",
        &["attest/readers registries_others_and_kiln_read_an_attested_image", "attest/readers docker_shows_what_is_attached"],
    ),
    (
        "provenance v1 and v0.2, mode=min|max, builder-id",
        &["attest/provenance max_says_what_buildkit_says", "attest/provenance min_says_what_buildkit_says_and_no_value"],
    ),
    ("SBOM: dpkg", &["attest/sbom the_packages_of_debian_are_those_that_dpkg_lists"]),
    ("SBOM: rpm", &["attest/rpm every_format_of_rpm_gives_the_packages_that_rpm_lists"]),
    (
        "SBOM: apk, languages",
        &["attest/sbom packages_of_languages_and_of_apk", "attest/sbom what_pip_installed_is_what_pip_lists"],
    ),
    ("metadata file", &["attest/provenance the_metadata_file_tells_as_much_as_is_wanted"]),
    ("SOURCE_DATE_EPOCH", &["contexts a_context_tells_the_time_of_the_build", "contexts a_source_tells_the_time_of_the_build"]),
    ("rewrite-timestamp", &["forms rewritten_times_make_images_the_same", "forms buildkit_rewrites_the_same_times"]),
    ("pins", &["lock what_is_locked_stays", "lock one_line_serves_all_platforms"]),
    ("verify", &["rebuild what_was_changed_on_the_way_is_named", "rebuild the_provenance_says_what_to_build"]),
    ("secrets are nowhere", &["attest/provenance c90_c91_nothing_that_is_said_holds_a_secret"]),
];

const PROTOCOL: &[Row] = &[
    (
        "configuration: docker's",
        &[
            "registry passwords_are_asked_for_kept_and_forgotten",
            "registry-client/src/credentials/tests.rs inline_credentials_by_registry",
        ],
    ),
    (
        "configuration: podman's, per repository",
        &[
            "hosts credentials_where_podman_keeps_them",
            "registry-client/tests/it/auth.rs repositories_have_their_own_credentials",
        ],
    ),
    ("Docker Hub's key", &["registry-client/src/credentials/tests.rs inline_credentials_by_registry"]),
    ("helpers", &["registry a_credential_helper_is_asked", "registry-client/tests/it/auth.rs broken_helpers_end_the_call"]),
    ("basic", &["registry-client/tests/it/real.rs htpasswd"]),
    (
        "bearer: GET, POST, refresh and identity tokens",
        &[
            "registry-client/tests/it/auth.rs tokens_are_asked_for",
            "registry-client/tests/it/auth.rs services_that_want_a_post",
            "registry-client/tests/it/auth.rs identity_tokens_stay_at_home",
        ],
    ),
    (
        "bearer: signed tokens that the registry checks",
        &["registry passwords_are_changed_for_signed_tokens", "registry-client/tests/it/tokens.rs rights_by_scope"],
    ),
    (
        "scopes, several for a mount",
        &[
            "registry-client/tests/it/auth.rs tokens_have_the_scope_of_their_call",
            "outputs a_matrix_of_private_repositories_is_joined",
        ],
    ),
    (
        "expiry mid-transfer (F19)",
        &[
            "registry-client/tests/it/tokens.rs f19_tokens_expire_mid_push",
            "registry-client/tests/it/auth.rs tokens_expire_between_ranges",
        ],
    ),
    (
        "mirrors, blocked, insecure, short names",
        &[
            "hosts registries_where_podman_finds_them",
            "registry-client/tests/it/reach.rs rules_for_names",
            "registry a_mirror_that_fails_is_passed_over",
        ],
    ),
    (
        "mirrors by digest or tag",
        &["builder/src/cli/registries_conf.rs tables_become_rules", "registry-client/src/endpoint.rs where_rules_lead"],
    ),
    (
        "TLS, client certificates",
        &["registry-client/tests/it/reach.rs certificates_by_folder", "registry tls_with_a_private_authority"],
    ),
    (
        "pull: Accept, digests, schema 1",
        &[
            "registry-client/tests/it/manifest.rs manifests_are_believed_or_refused",
            "registry-client/src/manifest.rs all_kinds_are_accepted",
        ],
    ),
    (
        "pull: ranges (F16)",
        &[
            "registry-client/tests/it/download.rs cut_downloads_go_on",
            "registry-client/tests/it/resume.rs twenty_cuts_cost_a_tenth",
        ],
    ),
    (
        "push: HEAD, mount, what is there isn't sent",
        &["registry blobs_that_exist_are_not_sent_again", "registry a_base_of_the_same_registry_is_mounted_not_sent"],
    ),
    (
        "push: chunks, resumed; other ways for other registries (F20)",
        &[
            "registry-client/tests/it/resume.rs f20_each_registry_gets_what_it_takes",
            "registry-client/tests/it/resume.rs f20_cut_uploads_go_on",
            "hosts large_layers_go_in_chunks",
        ],
    ),
    (
        "push: locations, absolute and relative",
        &[
            "registry-client/tests/it/upload.rs locations_of_uploads",
            "registry-client/tests/it/upload.rs uploads_elsewhere_carry_no_credentials",
        ],
    ),
    ("push: what the registry stored (F21)", &["registry-client/tests/it/upload.rs links_and_lies"]),
    (
        "retries, Retry-After (F17)",
        &[
            "registry-client/tests/it/download.rs retries_by_script",
            "registry-client/tests/it/download.rs retry_after_is_honoured",
            "registry-client/tests/it/front.rs f17_a_front_that_is_busy",
        ],
    ),
    ("stalls (F18)", &["registry-client/tests/it/front.rs f18_a_front_that_is_slow"]),
    ("HTTP/2", &["registry-client/tests/it/reach.rs http2_carries_many_transfers"]),
    ("redirects without credentials", &["registry-client/tests/it/download.rs redirects_carry_no_credentials"]),
    (
        "referrers, by API and by tag",
        &["registry-client/tests/it/referrers.rs the_api", "registry-client/tests/it/referrers.rs the_tag_in_place_of_the_api"],
    ),
    ("rate budget", &["registry-client/tests/it/referrers.rs few_pulls_left"]),
    (
        "proxies",
        &["registry-client/tests/it/environment.rs proxies_are_used", "registry-client/tests/it/reach.rs https_through_a_proxy"],
    ),
    ("sizes, depth, number (C80)", &["hosts c80_images_beyond_measure_are_refused"]),
    ("references (C81)", &["hosts c81_a_digest_is_what_it_says"]),
];

#[test]
fn every_part_has_its_tests() {
    let mut files: HashMap<String, String> = HashMap::new();
    let mut missing = Vec::new();
    for (part, tests) in [OUTPUTS, CACHES, ATTESTATIONS, PROTOCOL].concat() {
        assert!(!tests.is_empty(), "{part} has no test");
        for test in tests {
            let (file, name) = test.split_once(' ').expect("a file and a function");
            let path = if file.ends_with(".rs") { file.to_owned() } else { format!("builder/tests/it/{file}.rs") };
            let text =
                files.entry(path.clone()).or_insert_with(|| fs::read_to_string(workspace().join(path)).unwrap_or_default());
            if !text.contains(&format!("fn {name}()")) {
                missing.push(format!("{part}: {test}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
