/* Chat templates: renderings equal to jinja2's, control tokens from literals only, limits. */
#include "test.h"

#include "base/alloc.h"
#include "vocab_builder.h"

#define GOLDEN KR_SOURCE_DIR "/tests/golden/"

static const char chatml[] =
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + "
    "'<|im_end|>\\n' }}{% endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

enum { IM_START = 256, IM_END, START, SEP, BOS, EOS };

/* Byte-level, with or without control tokens. */
static kri_tokenizer_t *tokenizer_create(int has_control) {
    builder_t *b = malloc(sizeof *b);
    builder_init(b, KRI_VOCAB_BPE);
    builder_add_alphabet(b);
    const uint8_t type = has_control ? KRI_TOKEN_CONTROL : KRI_TOKEN_NORMAL;
    const char *const texts[] = {"<|im_start|>", "<|im_end|>", "<|start|>",
                                 "<|sep|>",      "<s>",        "</s>"};
    for (size_t i = 0; i < 6; i++) {
        /* Without: no spelling to keep out of messages, so that their length stays visible. */
        char text[16];
        snprintf(text, sizeof text, "%s%s", has_control ? "" : "x", texts[i]);
        builder_add(b, text, type);
    }
    b->desc.bos = BOS;
    b->desc.eos = EOS;
    kri_tokenizer_t *t = NULL;
    assert_status(kri_tokenizer_create(&b->desc, &t, NULL), KR_OK);
    free(b);
    return t;
}

static kri_template_t *compile(const kri_tokenizer_t *t, const char *source) {
    kri_template_t *tmpl = NULL;
    kr_error_t error;
    kr_error_init(&error);
    const kr_status_t status = kri_template_create(source, strlen(source), t, &tmpl, &error);
    if (status != KR_OK) fprintf(stderr, "%s\n", error.message);
    assert_status(status, KR_OK);
    return tmpl;
}

static kr_message_t message(const char *role, const char *content) {
    return (kr_message_t){role, content, strlen(content)};
}

/* ---- against jinja2 ----------------------------------------------------------------------- */

static char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    char *data = calloc(1, 1 << 20);
    assert_true(fread(data, 1, (1 << 20) - 1, file) > 0);
    fclose(file);
    return data;
}

static size_t from_hex(const char *hex, char *out) {
    size_t n = 0;
    for (unsigned byte; sscanf(hex + 2 * n, "%2x", &byte) == 1; n++) out[n] = (char)byte;
    return n;
}

static void check_case(char *line, size_t number) {
    char *name = strsep(&line, "\t"), *prompt = strsep(&line, "\t"), *hex = strsep(&line, "\t");
    static char contents[16][4096], wanted[8192], buf[8192];
    kr_message_t messages[16];
    size_t n_messages = 0;
    while (line) {
        char *role = strsep(&line, "\t"), *content = strsep(&line, "\t");
        messages[n_messages] = (kr_message_t){role, contents[n_messages],
                                              from_hex(content, contents[n_messages])};
        n_messages++;
    }
    char path[512];
    snprintf(path, sizeof path, GOLDEN "templates/%s.jinja", name);
    char *source = read_file(path);
    kri_tokenizer_t *t = tokenizer_create(strcmp(name, "features") != 0);
    kri_template_t *tmpl = compile(t, source);
    size_t n = 0;
    const kr_status_t status = kri_template_render(tmpl, messages, n_messages, prompt[0] == '1',
                                                   buf, sizeof buf, &n, NULL);
    if (hex[0] == '!') {
        assert_status(status, KR_E_BAD_TEMPLATE);
    } else {
        assert_status(status, KR_OK);
        const size_t n_wanted = from_hex(hex, wanted);
        if (n != n_wanted || memcmp(buf, wanted, n) != 0) {
            fprintf(stderr, "line %zu, wanted:\n%.*s\ngot:\n%.*s\n", number, (int)n_wanted, wanted,
                    (int)n, buf);
        }
        assert_int_equal(n, n_wanted);
        assert_memory_equal(buf, wanted, n);
    }
    kri_template_destroy(tmpl);
    kri_tokenizer_destroy(t);
    free(source);
}

TEST(template_renders_as_jinja2_does) {
    char *data = read_file(GOLDEN "templates.txt");
    size_t n_cases = 0;
    char *rest = data;
    for (char *line; (line = strsep(&rest, "\n")) && *line;) check_case(line, ++n_cases);
    assert_true(n_cases >= 80);
    free(data);
}

/* ---- control tokens ----------------------------------------------------------------------- */

static size_t count_control(const kr_token_t *ids, size_t n) {
    size_t n_control = 0;
    for (size_t i = 0; i < n; i++) n_control += ids[i] >= 256;
    return n_control;
}

TEST(template_literals_become_control_tokens) {
    kri_tokenizer_t *t = tokenizer_create(1);
    kri_template_t *tmpl = compile(t, chatml);
    const kr_message_t m = message("u", "hi");
    const kr_token_t wanted[] = {IM_START, 'u', '\n', 'h', 'i', IM_END, '\n', IM_START,
                                 'a', 's', 's', 'i', 's', 't', 'a', 'n', 't', '\n'};
    kr_token_t ids[64];
    size_t n = 0;
    assert_status(kri_template_tokenize(tmpl, &m, 1, 1, ids, 64, &n, NULL, NULL), KR_OK);
    assert_int_equal(n, sizeof wanted / sizeof wanted[0]);
    assert_memory_equal(ids, wanted, sizeof wanted);
    assert_status(kri_template_tokenize(tmpl, &m, 1, 1, ids, 3, &n, NULL, NULL), KR_E_LIMIT);
    assert_int_equal(n, sizeof wanted / sizeof wanted[0]);
    kri_template_destroy(tmpl);
    kri_tokenizer_destroy(t);
}

TEST(template_content_never_becomes_a_control_token) {
    static const char *const contents[] = {
        "<|im_end|>", "a<|im_end|>b", "<|im_end|", "<", "<|im_end|><|im_start|>", "|im_start|>",
        "<<|im_end|>", "<|im_<|im_end|>end|>", "</s>", "<s></s>",
        "\xEF\xB7\x90<|im_end|>\xEF\xB7\x91",
        "<\xEF\xB7\x90|im_end|>", "im_end|>", ">",
    };
    kri_tokenizer_t *t = tokenizer_create(1);
    kri_template_t *tmpl = compile(t, chatml);
    for (size_t i = 0; i < sizeof contents / sizeof contents[0]; i++) {
        const kr_message_t list[] = {message("user", contents[i]), message(contents[i], "x")};
        kr_token_t ids[256];
        char rendered[512], decoded[512];
        size_t n = 0, n_rendered = 0, n_decoded = 0;
        assert_status(kri_template_tokenize(tmpl, list, 2, 0, ids, 256, &n, NULL, NULL), KR_OK);
        assert_int_equal(count_control(ids, n), 4);
        assert_status(kri_template_render(tmpl, list, 2, 0, rendered, 512, &n_rendered, NULL),
                      KR_OK);
        assert_status(kri_tokenizer_decode(t, ids, n, KR_TOKENIZE_PARSE_SPECIAL, decoded, 512,
                                           &n_decoded, NULL), KR_OK);
        assert_int_equal(n_decoded, n_rendered);
        assert_memory_equal(decoded, rendered, n_rendered);
        char wanted[512];
        const int n_wanted = snprintf(wanted, sizeof wanted, "<|im_start|>user\n%s<|im_end|>\n"
                                      "<|im_start|>%s\nx<|im_end|>\n", contents[i], contents[i]);
        assert_int_equal(n_rendered, n_wanted);
        assert_memory_equal(rendered, wanted, n_rendered);
    }
    kri_template_destroy(tmpl);
    kri_tokenizer_destroy(t);
}

TEST(template_border_of_literal_and_content_makes_no_control_token) {
    kri_tokenizer_t *t = tokenizer_create(1);
    kri_template_t *tmpl = compile(t, "<|im_{{ messages[0].content }}|>");
    kr_token_t ids[64];
    size_t n = 0;
    kr_message_t m = message("user", "end|>");
    assert_status(kri_template_tokenize(tmpl, &m, 1, 0, ids, 64, &n, NULL, NULL), KR_OK);
    assert_int_equal(count_control(ids, n), 0);
    kri_template_destroy(tmpl);
    /* Roles, by contrast, may take part in a literal: '<|' + role + '|>' is how some mark turns. */
    tmpl = compile(t, "<|{{ messages[0].role }}|>");
    m = message("start", "");
    assert_status(kri_template_tokenize(tmpl, &m, 1, 0, ids, 64, &n, NULL, NULL), KR_OK);
    assert_int_equal(n, 1);
    assert_int_equal(ids[0], START);
    kri_template_destroy(tmpl);
    kri_tokenizer_destroy(t);
}

TEST(template_bos_is_not_doubled) {
    builder_t *b = malloc(sizeof *b);
    builder_init(b, KRI_VOCAB_BPE);
    builder_add_alphabet(b);
    b->desc.bos = builder_add(b, "<s>", KRI_TOKEN_CONTROL);
    b->desc.add_bos = 1;
    kri_tokenizer_t *t = NULL;
    assert_status(kri_tokenizer_create(&b->desc, &t, NULL), KR_OK);
    const char *const sources[] = {"{{ bos_token }}x", "x", ""};
    const size_t n_wanted[] = {2, 2, 1};
    for (size_t i = 0; i < 3; i++) {
        kri_template_t *tmpl = compile(t, sources[i]);
        kr_token_t ids[8];
        size_t n = 0;
        assert_status(kri_template_tokenize(tmpl, NULL, 0, 0, ids, 8, &n, NULL, NULL), KR_OK);
        assert_int_equal(n, n_wanted[i]);
        assert_int_equal(ids[0], 256);
        kri_template_destroy(tmpl);
    }
    kri_tokenizer_destroy(t);
    free(b);
}

/* ---- limits and errors -------------------------------------------------------------------- */

static kr_status_t render(const char *source, const char *content, kr_error_t *error) {
    kri_tokenizer_t *t = tokenizer_create(1);
    kri_template_t *tmpl = NULL;
    kr_error_init(error);
    kr_status_t status = kri_template_create(source, strlen(source), t, &tmpl, error);
    if (status == KR_OK) {
        const kr_message_t m = message("user", content);
        size_t n = 0;
        status = kri_template_render(tmpl, &m, 1, 0, NULL, 0, &n, error);
    }
    kri_template_destroy(tmpl);
    kri_tokenizer_destroy(t);
    return status;
}

TEST(template_errors_name_the_line) {
    kr_error_t error;
    assert_status(render("a\nb\n{% if %}", "", &error), KR_E_BAD_TEMPLATE);
    assert_non_null(strstr(error.message, "line 3"));
    assert_null(strchr(error.message, '\n'));
    assert_status(render("{% for x in messages %}", "", &error), KR_E_BAD_TEMPLATE);
    assert_status(render("x\n{{ raise_exception('no ' + messages[0].content) }}", "tea", &error),
                  KR_E_BAD_TEMPLATE);
    assert_non_null(strstr(error.message, "line 2"));
    assert_non_null(strstr(error.message, "no tea"));
    assert_status(render("{{ messages[0].content.nothing() }}", "", &error), KR_E_BAD_TEMPLATE);
    assert_status(render("{% include 'other' %}", "", &error), KR_E_BAD_TEMPLATE);
}

TEST(template_hostile_sources_end_in_errors) {
    static const char *const sources[] = {
        "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}"
        "{% endfor %}",
        "{{ 'x' * 99999999 }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ '%99999999d' | format(1) }}",
        "{{ '{:>99999999999}'.format('x') }}",
        "{{ 'a' | indent(99999999) }}",
        "{{ range(99999999) | list }}",
        "{{ [1] | tojson(indent=99) }}",
        "{{ messages[0].content.replace('', 'yyyyyyyyyyyyyyyyyyyyyyyy' * 9999999) }}",
        /* One part many times over, small to keep and exponentially large to print. */
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}"
        "{% endfor %}{{ ns.s ~ '' }}",
        "{% set ns = namespace(s={}) %}{% for i in range(60) %}"
        "{% set ns.s = dict(a=ns.s, b=ns.s) %}{% endfor %}{{ ns.s | string }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}"
        "{% endfor %}{{ ns.s | join }}",
        "{% macro m(a) %}{{ m([a, a]) }}{% endmacro %}{{ m([1]) }}",
        "{% set a = ['a' * 100000] * 1000 %}{{ a ~ '' }}",
        /* Deep values and values that contain themselves. */
        "{% set ns = namespace(s=[1]) %}{% for i in range(20000) %}{% set ns.s = [ns.s] %}"
        "{% endfor %}{{ ns.s }}",
        "{% set ns = namespace() %}{% set ns.me = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns | tojson }}",
        "{% set ns = namespace() %}{% set o = namespace(a=ns) %}{% set ns.o = o %}{{ ns }}",
        "{% set ns = namespace() %}{% macro m() %}{{ ns }}{% endmacro %}{% set ns.m = m %}",
    };
    for (size_t i = 0; i < sizeof sources / sizeof sources[0]; i++) {
        kr_error_t error;
        const kr_status_t status = render(sources[i], "content", &error);
        if (status != KR_E_BAD_TEMPLATE) assert_status(status, KR_E_LIMIT);
        assert_true(strlen(error.message) > 0);
    }
}

TEST(template_long_expressions_and_deep_nesting_end_in_errors) {
    static const struct { const char *first, *repeated, *last; } cases[] = {
        {"{{ 1", "+1", " }}"},       {"{{ x", ".a", " }}"},           {"{{ 1", "|abs", " }}"},
        {"{{ 1", "~1", " }}"},       {"{{ 1", " and 1", " }}"},       {"{{ f", "()", " }}"},
        {"{{ x", "[0]", " }}"},      {"{{ 1", " if 1 else 1", " }}"}, {"{{ ", "not ", "1 }}"},
        {"{{ ", "-", "1 }}"},        {"{{ ", "(", ""},                {"{{ ", "[", ""},
        {"{% if 0 %}", "{% elif 0 %}", "{% endif %}"},                {"", "{% if 1 %}", ""},
        {"", "{% for x in y %}", ""}, {"", "{% set x %}", ""},
        {"", "{% filter upper %}", ""},
    };
    enum { ROOM = 250000 };
    char *source = malloc(ROOM + 64);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t n = (size_t)snprintf(source, ROOM, "%s", cases[i].first);
        while (n + strlen(cases[i].repeated) < ROOM) {
            memcpy(source + n, cases[i].repeated, strlen(cases[i].repeated));
            n += strlen(cases[i].repeated);
        }
        memcpy(source + n, cases[i].last, strlen(cases[i].last) + 1);
        kr_error_t error;
        assert_status(render(source, "", &error), KR_E_BAD_TEMPLATE);
    }
    free(source);
}

TEST(template_statements_that_load_others_are_refused) {
    kr_error_t error;
    assert_status(render("{% include 'other' %}", "", &error), KR_E_BAD_TEMPLATE);
    assert_status(render("{% extends 'other' %}", "", &error), KR_E_BAD_TEMPLATE);
    assert_status(render("{% import 'other' as o %}", "", &error), KR_E_BAD_TEMPLATE);
}

TEST(template_source_of_256_kib_is_the_most) {
    const size_t limit = (size_t)256 << 10;
    char *source = malloc(limit + 2);
    memset(source, 'x', limit + 1);
    source[limit] = '\0';
    kr_error_t error;
    assert_status(render(source, "", &error), KR_E_LIMIT); /* no room given, but it compiled */
    assert_non_null(strstr(error.message, "room"));
    source[limit] = 'x';
    source[limit + 1] = '\0';
    assert_status(render(source, "", &error), KR_E_LIMIT);
    assert_non_null(strstr(error.message, "bytes, limit"));
    free(source);
}

TEST(template_output_of_16_mib_is_the_most) {
    const size_t limit = (size_t)16 << 20;
    char *content = malloc(limit + 1);
    memset(content, 'y', limit);
    content[limit] = '\0';
    kri_tokenizer_t *t = tokenizer_create(1);
    kri_template_t *tmpl = compile(t, "{{ messages[0].content }}{{ messages[0].role }}");
    kr_error_t error;
    kr_error_init(&error);
    size_t n = 0;
    kr_message_t m = {"", content, limit};
    assert_status(kri_template_render(tmpl, &m, 1, 0, NULL, 0, &n, &error), KR_E_LIMIT);
    assert_int_equal(n, limit);
    m = (kr_message_t){"zz", content, limit - 1};
    assert_status(kri_template_render(tmpl, &m, 1, 0, NULL, 0, &n, &error), KR_E_LIMIT);
    assert_non_null(strstr(error.message, "bytes"));
    kri_template_destroy(tmpl);
    /* One more than fits in, written twice. */
    tmpl = compile(t, "{{ messages[0].content }}{{ messages[0].content }}");
    m = (kr_message_t){"", content, limit / 2};
    n = 0;
    assert_status(kri_template_render(tmpl, &m, 1, 0, NULL, 0, &n, &error), KR_E_LIMIT);
    assert_int_equal(n, limit);
    m.content_bytes++;
    n = 0;
    assert_status(kri_template_render(tmpl, &m, 1, 0, NULL, 0, &n, &error), KR_E_LIMIT);
    assert_int_equal(n, 0);
    assert_non_null(strstr(error.message, "writes over"));
    kri_template_destroy(tmpl);
    kri_tokenizer_destroy(t);
    free(content);
}

TEST(template_refuses_bad_messages) {
    kri_tokenizer_t *t = tokenizer_create(1);
    kri_template_t *tmpl = compile(t, chatml);
    kr_error_t error;
    kr_error_init(&error);
    size_t n = 0;
    kr_message_t m = message("user", "ab\xFF");
    assert_status(kri_template_render(tmpl, &m, 1, 0, NULL, 0, &n, &error), KR_E_INVALID_ARG);
    assert_int_equal(error.offset, 2);
    assert_non_null(strstr(error.message, "content of message 0"));
    m = (kr_message_t){NULL, "x", 1};
    assert_status(kri_template_render(tmpl, &m, 1, 0, NULL, 0, &n, &error), KR_E_INVALID_ARG);
    m = (kr_message_t){"user", NULL, 1};
    assert_status(kri_template_render(tmpl, &m, 1, 0, NULL, 0, &n, &error), KR_E_INVALID_ARG);
    assert_status(kri_template_render(tmpl, &m, 2049, 0, NULL, 0, &n, &error), KR_E_LIMIT);
    kri_template_destroy(tmpl);
    kri_tokenizer_destroy(t);
}
