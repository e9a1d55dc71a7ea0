// Small conveniences over an engine; none knows more than its public methods.
import type { Named } from './aliases.js';
import type { EngineMethods } from './api.js';
import { Engine, createEngine } from './engine.js';
import { EngineClientError, TimeoutError, isRetryable } from './errors.js';
import { normalizeLoadModelOptions } from './normalize.js';
import type {
  EngineOptions, GenerationStats, GeneratorChunk, GeneratorParams, LoadModelOptions, ModelHandle,
  TokenizeResponse,
} from './types.js';

const sleep = (ms: number): Promise<void> => new Promise((resolve) => {
  setTimeout(resolve, ms);
});

type Loader = Pick<EngineMethods, 'loadModel' | 'getModelInfo'>;

export const generateText = (engine: Pick<EngineMethods, 'generate'>,
  params: Named<GeneratorParams>): Promise<string> => engine.generate(params);

/** The whole text and its statistics; `onToken` sees each piece as it comes. */
export async function generateTextStreaming(engine: Pick<EngineMethods, 'createGenerator'>,
  params: Named<GeneratorParams>, onToken: (token: string) => void,
): Promise<{ text: string; stats?: GenerationStats }> {
  let text = '';
  let stats: GenerationStats | undefined;
  for await (const chunk of engine.createGenerator(params)) {
    if (chunk.type === 'token') {
      text += chunk.token;
      onToken(chunk.token);
    } else if (chunk.type === 'metadata') {
      stats = chunk.stats;
    } else {
      throw errorOfChunk(chunk.error);
    }
  }
  return stats === undefined ? { text } : { text, stats };
}

function errorOfChunk(error: { code?: string; message: string; details?: unknown }):
EngineClientError {
  const code = (error.code ?? 'UnknownError') as EngineClientError['code'];
  return new EngineClientError(code, error.message, error.details);
}

export async function ensureModelLoaded(engine: Loader,
  options: Named<LoadModelOptions> | string): Promise<ModelHandle> {
  const model = normalizeLoadModelOptions(options)?.['model'];
  const isDescriptor = typeof model === 'object' && model !== null;
  const id = isDescriptor ? (model as { id: string }).id : String(model);
  const known = engine.getModelInfo(id);
  return known?.state === 'ready' ? known : engine.loadModel(options);
}

/** In the order of the texts; they travel together. */
export const batchTokenize = (engine: Pick<EngineMethods, 'tokenize'>, model: string,
  texts: readonly string[]): Promise<TokenizeResponse[]> =>
  Promise.all(texts.map((text) => engine.tokenize({ model, text })));

export async function collectChunks(engine: Pick<EngineMethods, 'createGenerator'>,
  params: Named<GeneratorParams>): Promise<GeneratorChunk[]> {
  const chunks: GeneratorChunk[] = [];
  for await (const chunk of engine.createGenerator(params)) chunks.push(chunk);
  return chunks;
}

export async function waitForModelReady(engine: Pick<EngineMethods, 'getModelInfo'>, id: string,
  timeoutMs = 30_000, pollIntervalMs = 100): Promise<ModelHandle> {
  const began = performance.now();
  for (;;) {
    const handle = engine.getModelInfo(id);
    if (handle?.state === 'ready') return handle;
    if (handle?.state === 'failed') {
      const error = handle.metadata.error;
      throw new EngineClientError('ModelLoadError', error?.message ?? `'${id}' failed to load`);
    }
    if (!(performance.now() - began < timeoutMs)) { // NaN is no limit at all
      throw new TimeoutError('waitForModelReady', timeoutMs);
    }
    await sleep(pollIntervalMs);
  }
}

export async function isEngineHealthy(engine: Pick<EngineMethods, 'healthCheck'>):
Promise<boolean> {
  return (await engine.healthCheck()).status === 'healthy';
}

export async function getTotalTokenCount(engine: Pick<EngineMethods, 'tokenize'>, model: string,
  texts: readonly string[]): Promise<number> {
  const all = await batchTokenize(engine, model, texts);
  return all.reduce((sum, { tokens }) => sum + tokens.length, 0);
}

/** Up to maxRetries attempts; the wait between them doubles. What cannot get better is not tried
 * again. */
export async function retryLoadModel(engine: Pick<EngineMethods, 'loadModel'>,
  options: Named<LoadModelOptions> | string, maxRetries = 3, initialDelayMs = 1000,
): Promise<ModelHandle> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await engine.loadModel(options);
    } catch (error) {
      const mayHelp = isRetryable(error)
        || (error instanceof EngineClientError && error.code === 'ModelLoadError');
      if (!mayHelp || attempt >= maxRetries) throw error;
      await sleep(initialDelayMs * 2 ** (attempt - 1));
    }
  }
}

/** The engine ends with the callback, however that ends. */
export async function withEngine<T>(callback: (engine: Engine) => Promise<T> | T,
  options?: EngineOptions): Promise<T> {
  const engine = await createEngine(options);
  try {
    return await callback(engine);
  } finally {
    await engine.dispose();
  }
}
