// A runtime whose lines are JSON of the wrong shape: whatever it says ends the call or the stream
// that it was said of, and nothing else.
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EngineClientError, errorOfWire } from '../src/errors.js';
import type { GeneratorChunk } from '../src/index.js';
import { NOTHING, ScriptedTransport, failure, makeEngine } from './support.js';
import type { Request } from './support.js';

const LOADED = { model_id: 'm', state: 'ready', context_length: 64 };
const PARAMS = { model: 'm', prompt: 'a' };
const STATS = { tokens_generated: 1, tokens_per_second: 1, time_to_first_token: 1, total_time: 1 };
type Notification = [method: string, params: unknown];

/** `says` is sent behind the answer to each generation, then its regular end. */
function streaming(says: (streamId: string) => Notification[]): () => ScriptedTransport {
  return () => new ScriptedTransport((request, transport) => {
    if (request.method === 'load_model') return LOADED;
    if (request.method === 'cancel') return { success: true };
    if (request.method !== 'generate') return undefined;
    const stream_id = String(request.params['stream_id']);
    queueMicrotask(() => {
      transport.say({ id: request.id, result: { stream_id } });
      for (const [method, params] of says(stream_id)) transport.say({ method, params });
      transport.say({ method: 'stream.event',
        params: { stream_id, event: 'completed', finish_reason: 'length' } });
    });
    return NOTHING;
  });
}

async function read(stream: AsyncGenerator<GeneratorChunk, void>): Promise<GeneratorChunk[]> {
  const chunks: GeneratorChunk[] = [];
  for (let step = await stream.next(); step.done !== true; step = await stream.next()) {
    chunks.push(step.value);
  }
  return chunks;
}

const WRONG: Record<string, (stream_id: string) => Notification[]> = {
  'a token that is null': (stream_id) => [['stream.chunk', { stream_id, tokens: [null, 5] }]],
  'a token that is a number': (stream_id) => [['stream.chunk', { stream_id, tokens: [5] }]],
  'tokens that are a text': (stream_id) => [['stream.chunk', { stream_id, tokens: 'abc' }]],
  'tokens that are null': (stream_id) => [['stream.chunk', { stream_id, tokens: null }]],
  'a text that is an object': (stream_id) => [['stream.chunk', { stream_id, token: {} }]],
  'an id that is a text': (stream_id) => [['stream.chunk', { stream_id, token_id: 'q' }]],
  'likely tokens that are a number': (stream_id) =>
    [['stream.chunk', { stream_id, token: 'a', top_logprobs: 5 }]],
  'a likely token that is null': (stream_id) =>
    [['stream.chunk', { stream_id, token: 'a', top_logprobs: [null] }]],
  'an end that says nothing': (stream_id) => [['stream.event', { stream_id }]],
  'an error that is null': (stream_id) =>
    [['stream.event', { stream_id, event: 'error', error: null }]],
  'an error of the wrong form': (stream_id) =>
    [['stream.event', { stream_id, event: 'error', error: { code: 'x', message: {} } }]],
  'statistics without numbers': (stream_id) => [['stream.stats', { stream_id }]],
};

test('a notification of the wrong shape ends its stream, and the next one works', async (t) => {
  let isWrong = true;
  let wrong: (streamId: string) => Notification[] = () => [];
  const good = (stream_id: string): Notification[] => [
    ['stream.chunk', null], ['stream.chunk', undefined], ['stream.chunk', { stream_id: 5 }],
    ['stream.chunk', { stream_id, token: 'a', token_id: 1, logprob: null,
      top_logprobs: [{ token_id: 1, logprob: -0.5 }] }],
    ['stream.stats', { stream_id, ...STATS }],
  ];
  const engine = makeEngine(t, {}, { runner: streaming((id) => (isWrong ? wrong : good)(id)) });
  await engine.loadModel('m');
  for (const [what, says] of Object.entries(WRONG)) {
    isWrong = true;
    wrong = says;
    let code: string | undefined;
    try {
      const last = (await read(engine.createGenerator(PARAMS))).at(-1);
      assert.equal(last?.type, 'error', what);
      code = last.error.code;
    } catch (error) {
      if (!(error instanceof EngineClientError)) throw error;
      code = error.code;
    }
    assert.equal(code, 'TransportError', what);
    isWrong = false;
    const chunks = await read(engine.createGenerator(PARAMS));
    assert.deepEqual(chunks.map(({ type }) => type), ['token', 'metadata'], what);
    const [token] = chunks;
    assert.ok(token?.type === 'token');
    assert.equal(token.logprob, -Infinity);
    assert.deepEqual(token.topLogprobs, [{ tokenId: 1, logprob: -0.5 }]);
  }
  assert.equal(engine.getStreamMetrics().activeStreams, 0);
});

test('an error of any shape is an error with a code', async (t) => {
  for (const wire of [undefined, null, 5, 'x', [], {}, { code: 1 }, { message: 'x' }]) {
    assert.equal(errorOfWire(wire, 'tokenize').code, 'TransportError');
  }
  const odd = errorOfWire({ code: -32602, message: 'no', data: 5 }, 'tokenize');
  assert.equal(odd.code, 'InvalidParams');
  const engine = makeEngine(t, {}, { runner: () => new ScriptedTransport(
    (request: Request, transport) => {
      if (request.method !== 'load_model') return undefined;
      transport.say({ id: request.id, error: 5 });
      return NOTHING;
    }) });
  const error = await failure(engine.loadModel('m'), 'TransportError');
  assert.match(error.message, /load_model/);
});

test('an answer that names another stream is none', async (t) => {
  const engine = makeEngine(t, {}, { runner: () => new ScriptedTransport(({ method }) => (
    method === 'load_model' ? LOADED : method === 'generate' ? { stream_id: 'x' } : undefined)) });
  await engine.loadModel('m');
  const error = await failure(engine.createGenerator(PARAMS).next(), 'TransportError');
  assert.match(error.message, /^generate: /);
  assert.equal(engine.getStreamMetrics().activeStreams, 0);
});

const SIDE = { id: 'm', vocab_size: 1, parameter_count: 1, architecture: 'x' };
const WRONG_ANSWERS = [
  null, 5, 'x', [], {}, { tokens: null }, { tokens: 'x' }, { tokens: [null] }, { results: 5 },
  { results: null }, { results: [] }, { tokens: { length: 1e9 } }, { text: 5 }, { count: 'x' },
  { embeddings: [5], dimensions: 1, prompt_tokens: 1 }, { embeddings: [] }, { generation: {} },
  { compatible: true, errors: [], warnings: [], details: { primary_model: SIDE } },
];

test('an answer of the wrong shape is a TransportError that names its method', async (t) => {
  let wrong: unknown;
  const engine = makeEngine(t, { config: {
    json_rpc: { circuit_breaker: { failure_threshold: 1000 } },
  } }, { runner: () => new ScriptedTransport((request, transport) => {
    if (request.method === 'load_model' && request.params['model_id'] === 'm') return LOADED;
    if (['runtime/info', 'list_models'].includes(request.method) && wrong === undefined) {
      return undefined;
    }
    queueMicrotask(() => transport.say({ id: request.id, result: wrong }));
    return NOTHING;
  }) });
  await engine.loadModel('m');
  const calls: Record<string, () => Promise<unknown>> = {
    tokenize: () => engine.tokenize({ model: 'm', text: 'a' }),
    batch_tokenize: () => Promise.all([
      engine.tokenize({ model: 'm', text: 'a' }), engine.tokenize({ model: 'm', text: 'b' }),
    ]),
    detokenize: () => engine.detokenize({ model: 'm', tokens: [1] }),
    count_tokens: () => engine.countTokens({ model: 'm', text: 'a' }),
    embed: () => engine.embed({ model: 'm', input: 'a' }),
    generate: () => engine.generate(PARAMS),
    load_model: () => engine.loadModel('other'),
    check_draft: () => engine.isDraftModelCompatible('m', 'm'),
    'runtime/info': () => engine.getRuntimeInfo(),
    'runtime/telemetry': () => engine.getTelemetryReport(),
  };
  for (wrong of WRONG_ANSWERS) {
    for (const [method, call] of Object.entries(calls)) {
      const error = await failure(call(), 'TransportError');
      assert.ok(error.message.startsWith(`${method}: `), `${method}: ${error.message}`);
    }
    const { stateErrors } = await engine.healthCheck();
    assert.match(stateErrors?.join() ?? '', /runtime\/state/);
  }
});

test('of a batch only the items of the wrong shape fail', async (t) => {
  const results = [
    { success: true, result: { tokens: [1] } }, null, { success: true, result: { tokens: 5 } },
    { success: false, error: 5 }, { success: false, error: { code: -32003, message: 'no' } },
  ];
  const engine = makeEngine(t, {}, { runner: () => new ScriptedTransport(({ method }) => (
    method === 'load_model' ? LOADED : method === 'batch_tokenize' ? { results } : undefined)) });
  await engine.loadModel('m');
  const texts = await Promise.allSettled(results.map((_, i) => engine.tokenize(
    { model: 'm', text: String(i) })));
  assert.deepEqual(texts.map((text) => (text.status === 'fulfilled' ? text.value.tokens
    : (text.reason as EngineClientError).code)),
  [[1], 'TransportError', 'TransportError', 'TransportError', 'TokenizerError']);
});

test('a start whose answers make no sense says which', async (t) => {
  for (const method of ['runtime/info', 'list_models']) {
    for (const wrong of [null, 5, 'x', {}, { models: [null] }, { models: [{ state: 'ready' }] }]) {
      const engine = makeEngine(t, {}, { runner: () => new ScriptedTransport((request, itself) => {
        if (request.method !== method) return undefined;
        queueMicrotask(() => itself.say({ id: request.id, result: wrong }));
        return NOTHING;
      }) });
      const error = await failure(engine.start(), 'TransportError');
      assert.ok(error.message.startsWith(`${method}: `), error.message);
    }
  }
});
