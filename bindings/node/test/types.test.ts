// The contract at the level of types: these tests fail by not compiling.
import assert from 'node:assert/strict';
import type { EventEmitter } from 'node:events';
import { test } from 'node:test';
import type { EMBED, GENERATOR } from '../src/aliases.js';
import type { EngineMethods, EnginePublicAPI, SnakeCase, SnakeMethods } from '../src/api.js';
import { Engine, createEngine } from '../src/index.js';
import type { EmbedRequest, GeneratorParams, MLXEngine } from '../src/index.js';
import { METHOD_NAMES, snakeCase } from '../src/snake.js';
import { makeTinyEngine } from './support.js';

type Same<A, B> = [A] extends [B] ? [B] extends [A] ? true : false : false;
function holds<T extends true>(..._: T[]): void {}

type Own = Exclude<keyof Engine, keyof EventEmitter>;
type Contract = Exclude<keyof EnginePublicAPI, keyof EventEmitter>;

test('class and contract have the same keys', () => {
  // `start` is what createEngine calls; asyncDispose is the language's; the port is no method.
  type Methods = Exclude<Own, 'start' | 'telemetryPort' | typeof Symbol.asyncDispose>;
  holds<Same<Methods, Contract>>();
  holds<Engine extends EnginePublicAPI ? true : false>();
});

test('every camelCase method has its snake_case twin', () => {
  holds<Same<SnakeCase<'isDraftModelCompatible'>, 'is_draft_model_compatible'>>();
  holds<Same<SnakeCase<keyof EngineMethods>, keyof SnakeMethods>>();
  holds<SnakeCase<keyof EngineMethods> extends keyof Engine ? true : false>();
  holds<Same<Engine['load_model'], Engine['loadModel']>>();
  holds<Same<Engine['get_artifact_cache_health'], Engine['getArtifactCacheHealth']>>();
  const prototype = Engine.prototype as unknown as Record<string, unknown>;
  assert.ok(METHOD_NAMES.length >= 32);
  for (const name of METHOD_NAMES) {
    assert.equal(typeof prototype[name], 'function', name);
    assert.equal(typeof prototype[snakeCase(name)], 'function', snakeCase(name));
  }
});

test('fields have both spellings, and unknown ones do not compile', async (t) => {
  const compiles = async (engine: Engine): Promise<void> => {
    engine.create_generator({ model: 'm', prompt: 'p', max_tokens: 4, stop_sequences: ['x'] });
    engine.createGenerator({ model_id: 'm', prompt_tokens: [1], top_p: 1, stream: false });
    await engine.chat({ model_id: 'm', messages: [], maxTokens: 1, top_k: 2 });
    await engine.load_model({
      model: 'm', local_path: '/p', context_length: 8, parameters: { max_tokens: 1 },
    });
    await engine.loadModel({ model_id: 'm', params: { temperature: 0, stop_token_ids: [1] } });
    await engine.tokenize({ model_id: 'm', text: '', add_special_tokens: false });
    await engine.detokenize({ model_id: 'm', tokens: [], skip_special_tokens: true });
    await engine.count_tokens({ model: 'm', text: '', add_bos: false });
    await engine.embed({ model_id: 'm', input: '', timeout_ms: 5 });
    const params: GeneratorParams = { model: 'm', prompt: 'p', max_tokens: 4, min_p: 0 };
    await engine.generate(params);
    // @ts-expect-error no such field
    await engine.generate({ model: 'm', prompt: 'p', max_token: 4 });
    // @ts-expect-error of another type
    await engine.generate({ model: 'm', prompt: 'p', max_tokens: '4' });
    // @ts-expect-error without a model
    await engine.generate({ prompt: 'p', max_tokens: 4 });
  };
  assert.equal(typeof compiles, 'function');
  // What compiles is what is taken: each alias of the tables is one of the types.
  holds<Same<keyof typeof GENERATOR, keyof GeneratorParams & keyof typeof GENERATOR>>();
  holds<Same<keyof typeof EMBED, keyof EmbedRequest & keyof typeof EMBED>>();
  const engine = await makeTinyEngine(t);
  const params = {
    model_id: 'tiny', prompt_tokens: [1], max_tokens: 2, ignore_eos: true, top_p: 1, top_k: 1,
    stop_sequences: ['~~'], temperature: 0, stream: false,
  };
  assert.equal(typeof await engine.generate(params), 'string');
});

test('the types of the surface are what programs wrote against', () => {
  holds<Same<ReturnType<typeof createEngine>, Promise<Engine>>>();
  holds<Same<Awaited<ReturnType<Engine['generate']>>, string>>();
  holds<Same<Awaited<ReturnType<MLXEngine['tokenize']>>, number[]>>();
  type Streamed = ReturnType<Engine['createGenerator']> extends AsyncGenerator<infer C, void>
    ? C : never;
  holds<Same<Streamed['type'], 'token' | 'metadata' | 'error'>>();
});
