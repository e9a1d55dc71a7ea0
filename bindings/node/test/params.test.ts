// Aliases, defaults, templates, schemas: what is accepted and what is refused by name.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  checkGeneratorParams, checkLoadModelOptions, checkTokenizeRequest,
} from '../src/check.js';
import { loadConfig } from '../src/config.js';
import { wireParams } from '../src/core/generator-factory.js';
import { EngineClientError } from '../src/errors.js';
import type { FieldIssue } from '../src/issues.js';
import {
  assertValidGeneratorParams, denormalizeGeneratorParams, denormalizeLoadModelOptions,
  denormalizeTokenizeRequest, isValidModelIdFormat, normalizeGeneratorParams,
  normalizeLoadModelOptions, normalizeTemperature, normalizeTokenizeRequest, normalizeTopP,
  renderTemplate, sanitizeModelId, validateGeneratorParams, validateLoadModelOptions,
  validateTokenizeRequest,
} from '../src/index.js';

function refusal(run: () => unknown, code: string, field: string): string {
  try {
    run();
  } catch (error) {
    assert.ok(error instanceof EngineClientError);
    assert.equal(error.code, code, error.message);
    const details = error.details as { field: string; issues: FieldIssue[] };
    assert.equal(details.field, field, error.message);
    assert.ok(error.message.includes(`'${field}'`), error.message);
    return error.message;
  }
  throw new assert.AssertionError({ message: `'${field}' was accepted` });
}

test('camel case wins, undefined never overrides, unknown keys survive', () => {
  assert.deepEqual(normalizeGeneratorParams({
    model_id: 'a', model: 'b', max_tokens: 1, maxTokens: undefined, stream: false, odd: 1,
  }), { model: 'b', maxTokens: 1, streaming: false, odd: 1 });
  assert.deepEqual(normalizeGeneratorParams({
    top_p: 0.5, presence_penalty: 1, frequency_penalty: 1, repetition_penalty: 1,
    stop_sequences: [], stop_token_ids: [], draft_model: 'd', prompt_tokens: [1], top_k: 2,
  }), {
    topP: 0.5, presencePenalty: 1, frequencyPenalty: 1, repetitionPenalty: 1, stopSequences: [],
    stopTokenIds: [], draftModel: 'd', promptTokens: [1], topK: 2,
  });
  for (const input of [null, undefined, 7, 'x', []]) {
    assert.equal(normalizeGeneratorParams(input), undefined);
  }
  assert.deepEqual(normalizeTokenizeRequest({ model_id: 'a', add_special_tokens: false }),
    { model: 'a', addBos: false });
  assert.deepEqual(normalizeTokenizeRequest({ add_bos: true, addBos: false }), { addBos: false });
});

test('loads: a string is the model, inline fields of a generation are its defaults', () => {
  assert.deepEqual(normalizeLoadModelOptions('a'), { model: 'a' });
  assert.deepEqual(normalizeLoadModelOptions({
    model_id: 'a', local_path: '/p', params: { max_tokens: 5 }, temperature: 0, maxTokens: 9,
  }), { model: 'a', localPath: '/p', parameters: { temperature: 0, maxTokens: 5 } });
  assert.equal(normalizeLoadModelOptions(null), undefined);
});

test('the inverse gives both names of the model', () => {
  const params = { model: 'a', maxTokens: 1, topP: 1, streaming: true };
  assert.deepEqual(denormalizeGeneratorParams(params),
    { model: 'a', model_id: 'a', max_tokens: 1, top_p: 1, stream: true });
  assert.deepEqual(denormalizeLoadModelOptions('a'), { model: 'a', model_id: 'a' });
  assert.deepEqual(denormalizeTokenizeRequest({ model: 'a', text: '', addBos: true }),
    { model: 'a', model_id: 'a', text: '', add_bos: true });
});

test('templates know words and nothing else', () => {
  assert.equal(renderTemplate('{{a}} {{ b }} {{c}}{{d}}', { a: 'x', b: 1.5, c: true, d: null }),
    'x 1.5 true');
  assert.equal(renderTemplate('{{missing}}|{{ not a word }}'), '|{{ not a word }}');
  assert.equal(renderTemplate('{{constructor}}{{__proto__}}', {}), '');
  assert.equal(renderTemplate('{{a}}', { a: '{{b}}', b: 'no' }), '{{b}}');
  for (const bad of [Number.NaN, {}, [], () => 1, 1n]) {
    assert.throws(() => renderTemplate('{{a}}', { a: bad }), { code: 'GenerationError' });
  }
});

const GOOD = { model: 'm', prompt: 'p' };

test('lesson 16: a field that is not implemented is refused by name', () => {
  const refuse = (field: string, value: unknown, code = 'InvalidParams'): string =>
    refusal(() => checkGeneratorParams({ ...GOOD, [field]: value }), code, field);
  assert.match(refuse('structured', { schema: {}, format: 'json' }, 'GuidanceError'), /not built/);
  assert.match(refuse('draftModel', 'd'), /not built/);
  assert.match(refuse('multimodal', { images: [], imageFormat: 'url' }), /not built/);
  for (const field of ['hints', 'n', 'tools', 'guidance', 'top_a', 'images']) refuse(field, {});
  checkGeneratorParams({ ...GOOD, structured: undefined, draft_model: undefined });
});

test('lesson 16: all sampling fields that are accepted reach the runtime', () => {
  const wire = wireParams(checkGeneratorParams({
    ...GOOD, maxTokens: 1, temperature: 0, topP: 1, topK: 1, minP: 0, typicalP: 1,
    presencePenalty: 1, frequencyPenalty: 1, repetitionPenalty: 1, logitBias: { 1: 2 },
    stopSequences: ['x'], stopTokenIds: [1], seed: 1, logprobs: true, topLogprobs: 1,
    ignoreEos: true, cachePrompt: false,
  }));
  assert.deepEqual(wire, {
    model_id: 'm', prompt: 'p', max_tokens: 1, temperature: 0, top_p: 1, top_k: 1, min_p: 0,
    typical_p: 1, presence_penalty: 1, frequency_penalty: 1, repetition_penalty: 1,
    logit_bias: { 1: 2 }, stop_sequences: ['x'], stop_token_ids: [1], seed: 1, logprobs: true,
    top_logprobs: 1, ignore_eos: true, cache_prompt: false,
  });
});

test('lesson 18: token prompts are prompts, and there is exactly one prompt', () => {
  assert.deepEqual(wireParams(checkGeneratorParams({ model: 'm', prompt: { tokens: [1, 2] } })),
    { model_id: 'm', prompt_tokens: [1, 2] });
  assert.deepEqual(wireParams(checkGeneratorParams({ model: 'm', prompt_tokens: [3] })),
    { model_id: 'm', prompt_tokens: [3] });
  assert.deepEqual(wireParams(checkGeneratorParams({
    model: 'm', prompt: { template: 'Hi {{name}}', variables: { name: 'Ann' } },
  })), { model_id: 'm', prompt: 'Hi Ann' });
  refusal(() => checkGeneratorParams({ model: 'm' }), 'InvalidParams', 'prompt');
  refusal(() => checkGeneratorParams({ ...GOOD, promptTokens: [1] }), 'InvalidParams', 'prompt');
  refusal(() => checkGeneratorParams({ model: 'm', prompt: {} }), 'InvalidParams', 'prompt');
  refusal(() => checkGeneratorParams({ model: 'm', promptTokens: [] }), 'InvalidParams',
    'promptTokens');
});

test('ranges are those of the runtime, and every bad field is listed', () => {
  const bad: [string, unknown[]][] = [
    ['maxTokens', [0, -1, 1.5, 100_001, '5', null]], ['temperature', [-0.1, 2.1, Number.NaN]],
    ['topP', [0, 1.1]], ['repetitionPenalty', [0, 2.1]], ['presencePenalty', [-2.1, 2.1]],
    ['stopSequences', [[''], Array(17).fill('a'), 'x']],
    ['stopTokenIds', [[-1], Array(101).fill(1)]],
    ['seed', [-1, 0.5]], ['logitBias', [{ x: 1 }, { 1: 101 }]], ['topLogprobs', [21]],
    ['streaming', [1, 'yes']], ['model', ['', null, 'a\u0000b', 'x'.repeat(256)]],
  ];
  for (const [field, values] of bad) {
    for (const value of values) {
      const result = validateGeneratorParams({ ...GOOD, [field]: value });
      assert.equal(result.valid, false, `${field} ${String(value)}`);
      assert.ok(result.errors.some((error) => error.includes(`'${field}`)), result.errors.join());
    }
  }
  const several = validateGeneratorParams({ maxTokens: 0, topP: 7, odd: 1 });
  assert.ok(several.errors.length >= 3, several.errors.join());
});

test('lesson 39: names and paths are checked, and nothing is evaluated', () => {
  for (const localPath of ['../x', '/a/../b', '~/x', '/a/~root']) {
    refusal(() => checkLoadModelOptions({ model: 'm', localPath }), 'InvalidParams', 'localPath');
  }
  const value = renderTemplate('{{a}}', { a: '${process.exit()}' });
  assert.equal(value, '${process.exit()}');
});

test('lesson 40: ids of all forms, a zero is a zero, empty lists are refused', () => {
  for (const id of ['org/name', 'org/name-7B.v1:tag', '/models/a.gguf', 'default', 'a b']) {
    assert.equal(checkLoadModelOptions(id).model, id);
    assert.ok(isValidModelIdFormat(id), id);
  }
  assert.equal(sanitizeModelId(' org/name '), 'org/name');
  for (const id of ['', ' ', undefined, null, 5, {}, Symbol('a')]) {
    assert.throws(() => sanitizeModelId(id as string), { code: 'InvalidParams' });
  }
  assert.deepEqual(checkLoadModelOptions('org/name@main'), { model: 'org/name', revision: 'main' });
  refusal(() => checkLoadModelOptions('org/name@v2'), 'InvalidParams', 'revision');
  assert.equal(checkLoadModelOptions('/models/a@b.gguf').model, '/models/a@b.gguf');
  assert.match(refusal(() => checkLoadModelOptions('hf://org/name'), 'InvalidParams', 'model'),
    /model/);
  refusal(() => checkGeneratorParams({ ...GOOD, maxTokens: 0 }), 'InvalidParams', 'maxTokens');
  refusal(() => checkGeneratorParams({ ...GOOD, multimodal: { images: [] } }), 'InvalidParams',
    'multimodal');
});

test('loads: what a file settles by itself is accepted where it says nothing', () => {
  checkLoadModelOptions({
    model: 'm', revision: 'main', quantization: 'none', trustRemoteCode: false,
  });
  const refuse = (field: string, value: unknown): string =>
    refusal(() => checkLoadModelOptions({ model: 'm', [field]: value }), 'InvalidParams', field);
  refuse('revision', 'v2');
  refuse('quantization', 'int4');
  refuse('trustRemoteCode', true);
  refuse('contextLength', 0);
  refuse('lazy', true);
  refusal(() => checkLoadModelOptions({ model: 'm', parameters: { draftModel: 'x' } }),
    'InvalidParams', 'parameters.draftModel');
  const vision = { id: 'v', source: 'local', modality: 'vision', family: 'mlx-vlm' };
  assert.equal(validateLoadModelOptions({ model: vision }).valid, false);
  const local = { id: 'v', source: 'local', path: '/p', modality: 'text', family: 'mlx-lm' };
  assert.deepEqual(checkLoadModelOptions({ model: local }).model, local);
});

test('validators say what is wrong, their asserting forms throw it', () => {
  assert.deepEqual(validateTokenizeRequest({ model: 'm', text: '' }), { valid: true, errors: [] });
  assert.equal(validateTokenizeRequest({ model: 'm', text: 'a\ud800' }).valid, false);
  assert.deepEqual(validateTokenizeRequest({ model: 'm' }),
    { valid: false, errors: ["'text' must be a string"] });
  assert.equal(checkTokenizeRequest({ model_id: 'm', text: 'x', add_bos: false }).addBos, false);
  assert.throws(() => assertValidGeneratorParams({}),
    { name: 'EngineError', code: 'InvalidParams' });
  assert.equal(normalizeTemperature(3), 2);
  assert.equal(normalizeTemperature(), 0.7);
  assert.equal(normalizeTopP(0), 1);
  assert.equal(normalizeTopP(0.5), 0.5);
});

test('a key that names a prototype is an unknown field like any other', () => {
  const parse = (text: string): unknown => JSON.parse(text);
  refusal(() => checkGeneratorParams(parse(
    '{"model": "m", "prompt": "p", "__proto__": {"maxTokens": 2}}')), 'InvalidParams', '__proto__');
  refusal(() => checkGeneratorParams(parse('{"__proto__": {"model": "m", "prompt": "p"}}')),
    'InvalidParams', 'model');
  refusal(() => checkTokenizeRequest(parse(
    '{"model": "m", "__proto__": {"text": "x"}}')), 'InvalidParams', 'text');
  refusal(() => checkLoadModelOptions(parse(
    '{"model": "m", "__proto__": {"draft": true}}')), 'InvalidParams', '__proto__');
  refusal(() => checkLoadModelOptions(parse(
    '{"model": "m", "parameters": {"__proto__": {"maxTokens": 2}}}')), 'InvalidParams',
  'parameters.__proto__');
  refusal(() => loadConfig(parse('{"__proto__": {"qos": {"enabled": true}}}') as object, () => {}),
    'InvalidParams', 'config.__proto__');
  const back = denormalizeGeneratorParams(parse('{"model": "m", "__proto__": {"a": 1}}'));
  assert.equal(Object.getPrototypeOf(back), Object.prototype);
  // What is inherited is not given.
  const inherits = Object.create({ maxTokens: 2 }) as object;
  assert.equal(checkGeneratorParams(Object.assign(inherits, GOOD)).maxTokens, undefined);
});
