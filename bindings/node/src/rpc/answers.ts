// The forms that answers have, as far as anything here relies on them. Looked at where an answer
// comes in: what has another form is an error of its call, and everything behind trusts its types.
// No schema library: some answers are millions of numbers.
import { isObject } from '../objects.js';

type Is = (value: unknown) => boolean;

const isText: Is = (value) => typeof value === 'string';
const isNumber: Is = (value) => typeof value === 'number';
const isTruth: Is = (value) => typeof value === 'boolean';
const optional = (is: Is): Is => (value) => value === undefined || is(value);
const listOf = (is: Is): Is => (value) => Array.isArray(value) && value.every(is);

function shape(fields: Record<string, Is>): Is {
  const all = Object.entries(fields);
  return (value) => isObject(value) && all.every(([name, is]) => is(value[name]));
}

const isModel = shape({ model_id: isText, state: isText, context_length: isNumber });
const isState = shape({ model_id: isText, state: isText });
const isBatch = shape({ results: Array.isArray });

const ANSWERS: Readonly<Record<string, Is>> = {
  'runtime/info': shape({
    version: isText, protocol: isText, protocol_version: isNumber, isa: isText,
    capabilities: listOf(isText), limits: isObject, memory: optional(isObject),
  }),
  'runtime/state': shape({ loaded_models: listOf(isState) }),
  'runtime/telemetry': shape({
    generation: shape({
      calls: isNumber, total_tokens: isNumber, latency_ms: isObject,
      throughput: shape({ tokens_per_second: isNumber }),
    }),
    tokenization: shape({ calls: isNumber, latency_ms: isObject }),
    errors: shape({ total: isNumber, timeouts: isNumber }),
  }),
  reload_config: shape({ changed: listOf(isText), needs_restart: listOf(isText) }),
  list_models: shape({
    models: listOf((model) => isModel(model) || (isState(model) && !isReady(model))),
  }),
  load_model: isModel,
  unload_model: isObject,
  generate: isObject,
  chat: isObject,
  tokenize: shape({ tokens: listOf(isNumber), token_strings: optional(listOf(isText)) }),
  detokenize: shape({ text: isText }),
  count_tokens: shape({ count: isNumber }),
  embed: shape({
    embeddings: listOf(listOf(isNumber)), dimensions: isNumber, prompt_tokens: isNumber,
  }),
  check_draft: shape({
    compatible: isTruth, errors: listOf(isText), warnings: listOf(isText),
    details: shape({ primary_model: isObject, draft_model: isObject, performance_estimate: isObject }),
  }),
  batch_tokenize: isBatch,
  batch_check_draft: isBatch,
};

function isReady(model: unknown): boolean {
  return isObject(model) && model['state'] === 'ready';
}

/** Whether `result` may be an answer of `method`; of others nothing is read. Items of a batch are
 * looked at one by one, with the method that each stands for. */
export function isAnswer(method: string, result: unknown): boolean {
  return ANSWERS[method]?.(result) ?? true;
}
