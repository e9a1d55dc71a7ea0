// The schemas of everything that crosses the public surface. What is not implemented is a field
// that only `undefined` fits, with a message that says why: it is refused by name.
import { z } from 'zod';
import { ENGINE_ERROR_CODES } from './errors.js';
import { fieldWithLoneSurrogate } from './rpc/surrogates.js';

const refused = (why: string) => z.undefined({ error: why }).optional();
const int = (min: number, max = Number.MAX_SAFE_INTEGER) => z.number().int().min(min).max(max);
const real = (min: number, max: number) => z.number().min(min).max(max);
const fromAbove = (max: number) => z.number().gt(0).max(max);
const bytes = (max: number) => z.string().min(1)
  .refine((text) => Buffer.byteLength(text) <= max, { error: `more than ${max} bytes` });

// ---- common -----------------------------------------------------------------------------------

/** A name as the runtime takes it: an alias, an id or a path. */
export const ModelIdSchema = bytes(255)
  .refine((id) => !/[\u0000-\u001f\u007f]/.test(id), { error: 'control characters' })
  .refine((id) => !id.startsWith('hf://'), {
    error: 'downloads are not built; fetch the .gguf file and give its path as localPath',
  });
export const StreamIdSchema = bytes(128);
export const PrioritySchema = z.enum(['urgent', 'default', 'background']);
export const TokenIdsSchema = z.array(int(0, 0x7fff_ffff));
const TimeoutSchema = int(1, 86_400_000);

// ---- generator --------------------------------------------------------------------------------

export const ChatMessageSchema = z.strictObject({ role: z.string().min(1), content: z.string() });

export const PromptSchema = z.union([
  z.string(),
  z.strictObject({
    template: z.string(),
    variables: z.record(z.string(), z.unknown()).optional(),
  }),
  z.strictObject({ tokens: TokenIdsSchema.min(1) }),
]);

const sampling = {
  maxTokens: int(1, 100_000).optional(),
  temperature: real(0, 2).optional(),
  topP: fromAbove(1).optional(),
  topK: int(-1, 0x7fff_ffff).optional(),
  minP: real(0, 1).optional(),
  typicalP: fromAbove(1).optional(),
  presencePenalty: real(-2, 2).optional(),
  frequencyPenalty: real(-2, 2).optional(),
  repetitionPenalty: fromAbove(2).optional(),
  logitBias: z.record(z.string().regex(/^\d+$/, { error: 'a key is no token id' }),
    real(-100, 100)).optional(),
  stopSequences: z.array(bytes(256)).max(16).optional(),
  stopTokenIds: TokenIdsSchema.max(100).optional(),
  seed: int(0).optional(),
  streaming: z.boolean().optional(),
  logprobs: z.boolean().optional(),
  topLogprobs: int(0, 20).optional(),
  ignoreEos: z.boolean().optional(),
  cachePrompt: z.boolean().optional(),
  structured: refused('structured output is not built'),
  multimodal: refused('vision is not built'),
  draftModel: refused('drafts while generating are not built'),
  hints: refused('nothing would look at hints'),
  n: refused('one text a generation; start several'),
  tools: refused('tools are not built'),
};

/** Defaults of a model's generations. */
export const GeneratorDefaultsSchema = z.strictObject(sampling);

export const GeneratorParamsSchema = z.strictObject({
  model: ModelIdSchema,
  prompt: PromptSchema.optional(),
  promptTokens: TokenIdsSchema.min(1).optional(),
  messages: z.array(ChatMessageSchema).min(1).optional(),
  ...sampling,
}).superRefine((params, context) => {
  const given = [params.prompt, params.promptTokens, params.messages]
    .filter((value) => value !== undefined).length;
  if (given === 1) return;
  context.addIssue({
    code: 'custom', path: ['prompt'],
    message: given === 0 ? 'one of prompt, promptTokens and messages is needed'
      : 'only one of prompt, promptTokens and messages may be given',
  });
});

const isListened = (value: object): boolean => ['addEventListener', 'removeEventListener']
  .every((name) => typeof (value as Record<string, unknown>)[name] === 'function');

export const CreateGeneratorOptionsSchema = z.strictObject({
  // By its form: one of another realm (a window, a test's sandbox) is as good.
  signal: z.custom<AbortSignal>((value) => typeof value === 'object' && value !== null
    && 'aborted' in value && isListened(value), {
    error: 'must be an AbortSignal',
  }).optional(),
  streamId: StreamIdSchema.optional(),
  timeoutMs: TimeoutSchema.optional(),
  priority: PrioritySchema.optional(),
  cumulativeText: z.boolean().optional(),
});

export const GenerationStatsSchema = z.object({
  tokensGenerated: int(0),
  tokensPerSecond: z.number().min(0),
  timeToFirstToken: z.number().min(0),
  totalTime: z.number().min(0).optional(),
  modelId: z.string().optional(),
  promptTokens: int(0).optional(),
  cachedTokens: int(0).optional(),
  finishReason: z.enum(['eos', 'stop', 'length', 'cancelled', 'timeout', 'shutdown', 'error'])
    .optional(),
});

// ---- model ------------------------------------------------------------------------------------

export const ModelDescriptorSchema = z.strictObject({
  id: ModelIdSchema,
  variant: refused('a file has no variants'),
  source: z.enum(['huggingface', 'local']),
  path: z.string().min(1).optional(),
  tokenizer: refused('the tokenizer is the one in the file'),
  modality: z.literal('text', { error: 'vision is not built' }),
  family: z.enum(['kr', 'mlx-lm'], { error: 'vision is not built' }),
});

const LocalPathSchema = z.string().min(1).max(4095)
  .refine((path) => !path.includes('~'), { error: "may not hold '~'" })
  .refine((path) => !path.includes('..'), { error: "may not hold '..'" });

export const LoadModelOptionsSchema = z.strictObject({
  model: z.union([ModelIdSchema, ModelDescriptorSchema]),
  draft: z.boolean().optional(),
  revision: z.literal('main', { error: "a file is what it is: only 'main'" }).optional(),
  quantization: z.literal('none', { error: "a file is what it is: only 'none'" }).optional(),
  parameters: GeneratorDefaultsSchema.optional(),
  trustRemoteCode: z.literal(false, { error: 'there is no code to trust' }).optional(),
  localPath: LocalPathSchema.optional(),
  contextLength: int(1, 1_000_000).optional(),
});

// ---- tokenizer --------------------------------------------------------------------------------

export const TokenizeRequestSchema = z.strictObject({
  model: ModelIdSchema,
  // Looked at here, because it may share a message with the requests of others.
  text: z.string().refine((text) => fieldWithLoneSurrogate(text) === undefined, {
    error: 'holds half a surrogate pair, which is no character',
  }),
  addBos: z.boolean().optional(),
});
export const TokenizeResponseSchema = z.object({
  tokens: TokenIdsSchema,
  tokenStrings: z.array(z.string()).optional(),
});
export const TokenizeOptionsSchema = z.strictObject({
  signal: CreateGeneratorOptionsSchema.shape.signal,
  timeoutMs: TimeoutSchema.optional(),
  priority: PrioritySchema.optional(),
});
export const DetokenizeRequestSchema = z.strictObject({
  model: ModelIdSchema,
  tokens: TokenIdsSchema,
  skipSpecialTokens: z.boolean().optional(),
});
export const CountTokensRequestSchema = z.strictObject({
  model: ModelIdSchema,
  text: z.string().optional(),
  messages: z.array(ChatMessageSchema).min(1).optional(),
  addBos: z.boolean().optional(),
}).refine((request) => (request.text === undefined) !== (request.messages === undefined), {
  path: ['text'], error: 'one of text and messages is needed',
});
export const EmbedRequestSchema = z.strictObject({
  model: ModelIdSchema,
  input: z.union([z.string(), z.array(z.string()).min(1).max(256)]),
  pooling: z.enum(['mean', 'last']).optional(),
  normalize: z.boolean().optional(),
  timeoutMs: TimeoutSchema.optional(),
});

// ---- engine options ---------------------------------------------------------------------------

export const CacheConfigSchema = z.strictObject({
  enabled: z.boolean().optional(),
  cacheDir: z.string().min(1).optional(),
  maxSizeBytes: int(1_048_576).optional(),
  maxAgeDays: refused('entries have no age; the least recently used goes first'),
  evictionPolicy: z.literal('lru', { error: "only 'lru' is built" }).optional(),
  preloadModels: z.array(ModelIdSchema).max(16).optional(),
  enableCompression: z.literal(false, { error: 'compression is not built' }).optional(),
  validateOnStartup: z.literal(true, { error: 'entries are always checked' }).optional(),
});

const hook = z.custom<unknown>((value) => typeof value === 'function', {
  error: 'must be a function',
}).optional();

export const EngineOptionsSchema = z.strictObject({
  krPath: z.string().min(1).optional(),
  transport: z.enum(['child', 'in-process']).optional(),
  runtime: z.strictObject({
    args: z.array(z.string()).max(1_000).optional(),
    env: z.record(z.string(), z.string()).optional(),
    cwd: z.string().min(1).optional(),
  }).optional(),
  config: z.union([z.string().min(1), z.record(z.string(), z.unknown())]).optional(),
  cacheDir: z.string().min(1).optional(),
  cache: CacheConfigSchema.optional(),
  telemetry: z.strictObject({
    enabled: z.boolean(),
    hooks: z.strictObject({
      onModelLoaded: hook, onModelUnloaded: hook, onTokenGenerated: hook,
      onGenerationCompleted: hook, onGenerationFailed: hook, onError: hook,
      onBatchDispatched: hook, onIpcRequestStarted: hook, onIpcRequestFinished: hook,
      onRetry: hook, onCircuitBreakerStateChange: hook, onQosEvaluated: hook,
    }).optional(),
  }).optional(),
  pythonPath: refused('no Python is involved; the runtime is krPath'),
  runtimePath: refused('no Python is involved; the runtime is krPath'),
});

// ---- telemetry --------------------------------------------------------------------------------

export const TelemetryConfigSchema = z.strictObject({
  enabled: z.boolean(),
  serviceName: z.string().regex(/^[A-Za-z0-9_-]{1,100}$/).optional(),
  prometheusPort: int(0, 65_535).optional(),
  prometheusHost: z.string().min(1).optional(),
  exportIntervalMs: int(1000, 600_000).optional(),
});

// ---- JSON-RPC ---------------------------------------------------------------------------------

export const JsonRpcIdSchema = z.union([z.number().int(), z.string(), z.null()]);
export const JsonRpcRequestSchema = z.strictObject({
  jsonrpc: z.literal('2.0'),
  id: JsonRpcIdSchema.optional(),
  method: z.string().min(1),
  params: z.record(z.string(), z.unknown()).optional(),
});
export const JsonRpcErrorObjectSchema = z.object({
  code: z.number().int(),
  message: z.string(),
  data: z.unknown().optional(),
});
export const JsonRpcResponseSchema = z.union([
  z.object({ jsonrpc: z.literal('2.0'), id: JsonRpcIdSchema, result: z.unknown() }),
  z.object({ jsonrpc: z.literal('2.0'), id: JsonRpcIdSchema, error: JsonRpcErrorObjectSchema }),
]);

// ---- events -----------------------------------------------------------------------------------

const timestamp = z.number().positive();
const handle = z.looseObject({ descriptor: z.looseObject({ id: z.string() }) });
const engineError = z.object({
  code: z.enum(ENGINE_ERROR_CODES), message: z.string(), details: z.unknown().optional(),
});

/** What the engine really emits, event by event. */
export const EngineEventSchemas = {
  'model:loaded': z.strictObject({ modelId: z.string(), handle, timestamp }),
  'model:unloaded': z.strictObject({ modelId: z.string(), timestamp }),
  'model:invalidated': z.strictObject({
    modelId: z.string(), reason: z.enum(['python_restart', 'unload', 'error']), timestamp,
  }),
  'generation:started': z.strictObject({
    streamId: z.string(), modelId: z.string(), prompt: z.string(), timestamp,
  }),
  'generation:token': z.strictObject({
    streamId: z.string(), token: z.string(), logprob: z.number().optional(), timestamp,
  }),
  'generation:completed': z.strictObject({
    streamId: z.string(), stats: GenerationStatsSchema, timestamp,
  }),
  error: z.strictObject({ error: engineError, context: z.string().optional(), timestamp }),
  'runtime:status': z.strictObject({
    status: z.enum(['starting', 'ready', 'error', 'stopped']),
    previousStatus: z.enum(['starting', 'ready', 'error', 'stopped']).optional(), timestamp,
  }),
  'qos:violation': z.strictObject({
    violation: z.looseObject({ policy: z.string(), metric: z.string(), value: z.number() }),
    timestamp,
  }),
} as const;
