// The module functions: one engine for the whole program, made when it is first needed. Their names
// and forms are those of mlx-lm.
import { Engine, createEngine } from './engine.js';
import { EngineClientError } from './errors.js';
import type {
  CreateGeneratorOptions, GeneratorChunk, GeneratorParams, LoadModelOptions, ModelHandle,
} from './types.js';

let engine: Promise<Engine> | undefined;

/** An engine that could not start is tried again by the next call. */
export function getEngine(): Promise<Engine> {
  const current = engine ??= createEngine();
  current.catch(() => {
    if (engine === current) engine = undefined;
  });
  return current;
}

function idOf(handle: ModelHandle | string): string {
  return typeof handle === 'string' ? handle : handle.descriptor.id;
}

type Params = Omit<Partial<GeneratorParams>, 'model' | 'prompt'> & Record<string, unknown>;

function paramsOf(handle: ModelHandle | string, prompt: string | number[],
  params: Params): GeneratorParams {
  const input = typeof prompt === 'string' ? { prompt } : { promptTokens: prompt };
  return { ...params, model: idOf(handle), ...input } as GeneratorParams;
}

export async function load_model(model: string | LoadModelOptions,
  options: Omit<LoadModelOptions, 'model'> = {}): Promise<ModelHandle> {
  const whole = typeof model === 'string' ? { ...options, model } : { ...options, ...model };
  return (await getEngine()).loadModel(whole as LoadModelOptions);
}

export async function* create_generator(handle: ModelHandle | string, prompt: string | number[],
  params: Params = {}, options?: CreateGeneratorOptions): AsyncGenerator<GeneratorChunk, void> {
  yield* (await getEngine()).createGenerator(paramsOf(handle, prompt, params), options);
}

export async function generate(handle: ModelHandle | string, prompt: string | number[],
  params: Params = {}, options?: CreateGeneratorOptions): Promise<string> {
  return (await getEngine()).generate(paramsOf(handle, prompt, params), options);
}

export async function tokenize(handle: ModelHandle | string, text: string,
  options: { add_bos?: boolean } = {}): Promise<number[]> {
  const { add_bos, ...others } = options;
  const [unknown] = Object.keys(others);
  if (unknown !== undefined) {
    throw new EngineClientError('InvalidParams', `tokenize: '${unknown}' is not a known field`,
      { field: unknown });
  }
  const request = { model: idOf(handle), text, ...(add_bos !== undefined && { addBos: add_bos }) };
  return (await (await getEngine()).tokenize(request)).tokens;
}

export async function unload_model(handle: ModelHandle | string): Promise<void> {
  await (await getEngine()).unloadModel(idOf(handle));
}

/** Ends the global engine; without one it does nothing. */
export async function shutdown(): Promise<void> {
  const current = engine;
  engine = undefined;
  if (current === undefined) return;
  await (await current.catch(() => undefined))?.shutdown();
}
