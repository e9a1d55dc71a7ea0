// The second spelling of fields, and whose field it is. Names and types follow from these tables.

export const GENERATOR = {
  model_id: 'model', prompt_tokens: 'promptTokens', max_tokens: 'maxTokens', top_p: 'topP',
  top_k: 'topK', min_p: 'minP', typical_p: 'typicalP', presence_penalty: 'presencePenalty',
  frequency_penalty: 'frequencyPenalty', repetition_penalty: 'repetitionPenalty',
  logit_bias: 'logitBias', stop_sequences: 'stopSequences', stop_token_ids: 'stopTokenIds',
  stream: 'streaming', top_logprobs: 'topLogprobs', ignore_eos: 'ignoreEos',
  cache_prompt: 'cachePrompt', draft_model: 'draftModel',
} as const;

export const LOAD = {
  model_id: 'model', local_path: 'localPath', params: 'parameters',
  context_length: 'contextLength', trust_remote_code: 'trustRemoteCode',
} as const;

export const TOKENIZE = {
  model_id: 'model', add_bos: 'addBos', add_special_tokens: 'addBos', addSpecialTokens: 'addBos',
} as const;

export const DETOKENIZE = { model_id: 'model', skip_special_tokens: 'skipSpecialTokens' } as const;

export const EMBED = { model_id: 'model', timeout_ms: 'timeoutMs' } as const;

/** The second spelling of each field of T that has one. */
export type Aliases<T, Table extends Record<string, PropertyKey>> = {
  [Alias in keyof Table as Table[Alias] extends keyof T ? Alias : never]?:
  Table[Alias] extends keyof T ? Exclude<T[Table[Alias]], undefined> : never;
};

/** T, where `model_id` may stand for `model`. */
export type Named<T extends { model: unknown }> = T
  | ({ [Field in keyof T as Field extends 'model' ? never : Field]: T[Field] }
    & { model_id: T['model'] });
