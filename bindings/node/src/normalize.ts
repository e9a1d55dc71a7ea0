// Aliases: what callers may write, and what the engine reads. Camel case wins over its snake form,
// undefined never overrides, unknown keys survive (the schemas refuse them), anything that is no
// object becomes undefined.
import { isObject } from './objects.js';

type Fields = Record<string, unknown>;

const GENERATOR: Record<string, string> = {
  model_id: 'model', prompt_tokens: 'promptTokens', max_tokens: 'maxTokens', top_p: 'topP',
  top_k: 'topK', min_p: 'minP', typical_p: 'typicalP', presence_penalty: 'presencePenalty',
  frequency_penalty: 'frequencyPenalty', repetition_penalty: 'repetitionPenalty',
  logit_bias: 'logitBias', stop_sequences: 'stopSequences', stop_token_ids: 'stopTokenIds',
  stream: 'streaming', top_logprobs: 'topLogprobs', ignore_eos: 'ignoreEos',
  cache_prompt: 'cachePrompt', draft_model: 'draftModel',
};
const GENERATOR_NAMES = new Set([
  ...Object.keys(GENERATOR), ...Object.values(GENERATOR), 'prompt', 'messages', 'temperature',
  'seed', 'logprobs', 'structured', 'multimodal', 'hints',
]);
const LOAD: Record<string, string> = {
  model_id: 'model', local_path: 'localPath', params: 'parameters',
  context_length: 'contextLength', trust_remote_code: 'trustRemoteCode',
};
const TOKENIZE: Record<string, string> = {
  model_id: 'model', add_bos: 'addBos', add_special_tokens: 'addBos', addSpecialTokens: 'addBos',
};
const DETOKENIZE: Record<string, string> = {
  model_id: 'model', skip_special_tokens: 'skipSpecialTokens',
};
const EMBED: Record<string, string> = { model_id: 'model', timeout_ms: 'timeoutMs' };

function rename(input: unknown, aliases: Record<string, string>): Fields | undefined {
  if (!isObject(input)) return undefined;
  const output: Fields = {};
  for (const [key, value] of Object.entries(input)) {
    if (value !== undefined && !Object.hasOwn(aliases, key)) output[key] = value;
  }
  for (const [alias, name] of Object.entries(aliases)) {
    const value = Object.hasOwn(input, alias) ? input[alias] : undefined;
    if (value !== undefined && output[name] === undefined) output[name] = value;
  }
  return output;
}

export const normalizeGeneratorParams = (input: unknown): Fields | undefined =>
  rename(input, GENERATOR);
export const normalizeTokenizeRequest = (input: unknown): Fields | undefined =>
  rename(input, TOKENIZE);
export const normalizeDetokenizeRequest = (input: unknown): Fields | undefined =>
  rename(input, DETOKENIZE);
export const normalizeEmbedRequest = (input: unknown): Fields | undefined => rename(input, EMBED);

/** A string means {model}. Fields of a generation that stand beside those of a load belong into
 * `parameters`; what `parameters` says itself wins. */
export function normalizeLoadModelOptions(input: unknown): Fields | undefined {
  if (typeof input === 'string') return { model: input };
  const renamed = rename(input, LOAD);
  if (renamed === undefined) return undefined;
  const output: Fields = {};
  const inline: Fields = {};
  for (const [key, value] of Object.entries(renamed)) {
    const isInline = key !== 'model' && GENERATOR_NAMES.has(key);
    (isInline ? inline : output)[key] = value;
  }
  const own = output['parameters'];
  if (Object.keys(inline).length > 0 || isObject(own)) {
    output['parameters'] = {
      ...normalizeGeneratorParams(inline), ...normalizeGeneratorParams(own ?? {}),
    };
  }
  return output;
}

function invert(input: unknown, aliases: Record<string, string>): Fields | undefined {
  const normal = rename(input, aliases);
  if (normal === undefined) return undefined;
  const output: Fields = {};
  const snake = new Map<string, string>();
  for (const [alias, name] of Object.entries(aliases)) {
    if (!snake.has(name)) snake.set(name, alias);
  }
  for (const [key, value] of Object.entries(normal)) output[snake.get(key) ?? key] = value;
  if (normal['model'] !== undefined) output['model'] = normal['model'];
  return output;
}

/** The snake forms; the model under both `model` and `model_id`. */
export const denormalizeGeneratorParams = (input: unknown): Fields | undefined =>
  invert(input, GENERATOR);
export const denormalizeLoadModelOptions = (input: unknown): Fields | undefined =>
  invert(typeof input === 'string' ? { model: input } : input, LOAD);
export const denormalizeTokenizeRequest = (input: unknown): Fields | undefined =>
  invert(input, TOKENIZE);
