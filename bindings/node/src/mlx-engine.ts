// One model with an engine of its own, in the form of LM Studio's mlx-engine.
import { createEngine } from './engine.js';
import type { Engine } from './engine.js';
import { EngineClientError } from './errors.js';
import type {
  CreateGeneratorOptions, EngineOptions, GeneratorChunk, GeneratorParams, LoadModelOptions,
  ModelHandle, PromptInput,
} from './types.js';

export type MLXEngineOptions = LoadModelOptions & { engine?: EngineOptions };
type Params = Omit<Partial<GeneratorParams>, 'model' | 'prompt'>;

export class MLXEngine {
  private readonly load: LoadModelOptions;
  private readonly options: EngineOptions | undefined;
  private engine: Engine | undefined;
  private handle: ModelHandle | undefined;
  private starting: Promise<void> | undefined;

  constructor(model: string | MLXEngineOptions) {
    const { engine, ...load } = typeof model === 'string' ? { model } : model;
    this.load = load as LoadModelOptions;
    this.options = engine as EngineOptions | undefined;
  }

  /** Calls that come while it starts share the start. */
  init(): Promise<void> {
    this.starting ??= this.start().catch((error: unknown) => {
      this.starting = undefined;
      throw error;
    });
    return this.starting;
  }

  isInitialized(): boolean {
    return this.handle !== undefined;
  }

  async generate(prompt: PromptInput, params: Params = {},
    options?: CreateGeneratorOptions): Promise<string> {
    await this.init();
    return this.getEngine().generate({ ...params, model: this.id(), prompt }, options);
  }

  async* generateStream(prompt: PromptInput, params: Params = {},
    options?: CreateGeneratorOptions): AsyncGenerator<GeneratorChunk, void> {
    await this.init();
    yield* this.getEngine().createGenerator({ ...params, model: this.id(), prompt }, options);
  }

  async tokenize(text: string): Promise<number[]> {
    await this.init();
    return (await this.getEngine().tokenize({ model: this.id(), text })).tokens;
  }

  getModelHandle(): ModelHandle | undefined {
    return this.handle;
  }

  getEngine(): Engine {
    if (this.engine !== undefined) return this.engine;
    throw new EngineClientError('RuntimeError', 'init() has not been called');
  }

  async dispose(): Promise<void> {
    await this.starting?.catch(() => {});
    const { engine } = this;
    this.engine = undefined;
    this.handle = undefined;
    this.starting = undefined;
    await engine?.dispose();
  }

  private id(): string {
    return (this.handle as ModelHandle).descriptor.id;
  }

  private async start(): Promise<void> {
    const engine = await createEngine(this.options);
    try {
      this.handle = await engine.loadModel(this.load);
      this.engine = engine;
    } catch (error) {
      await engine.dispose();
      throw error;
    }
  }
}

export async function createMLXEngine(model: string | MLXEngineOptions): Promise<MLXEngine> {
  const engine = new MLXEngine(model);
  await engine.init();
  return engine;
}
