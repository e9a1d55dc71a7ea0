// Which models there are. One entry for each id, from its first load to its unloading; identical
// loads share one promise; nobody generates with a model that is not ready. Models survive a crash
// of the runtime: they are loaded again, and who needs one waits for it. At capacity the least
// recently used model that nothing uses makes room.
import { EngineClientError, toEngineError } from '../errors.js';
import { isBusy } from '../rpc/client.js';
import type { RequestOptions } from '../rpc/client.js';
import type {
  GeneratorParams, InvalidationReason, LoadModelOptions, ModelDescriptor, ModelHandle,
  ModelMetadata,
} from '../types.js';

const FAILED_MAX = 64;
/** A model that takes the runtime down while it loads is not tried for ever. */
const RELOAD_CRASHES_MAX = 2;
const LEAVING_MS = 30_000;

export interface WireModel {
  model_id: string;
  state: string;
  draft: boolean;
  context_length: number;
  context_length_trained: number;
  parameter_count: number;
  vocab_size: number;
  is_vision_model: boolean;
  dtype: string;
  architecture: string;
  cached_path: string;
  memory_usage: number;
  embedding_length: number;
  has_chat_template: boolean;
  load_time_ms: number;
}

export interface ManagerOptions {
  call: <T>(method: string, params: Record<string, unknown>, request: RequestOptions) => Promise<T>;
  /** Resolves when there is a runtime, and what it was started with is known. */
  connect: () => Promise<unknown>;
  maxModels: number;
  contextLength?: number | undefined;
  loadTimeoutMs: number;
  onLoaded: (handle: ModelHandle) => void;
  onUnloaded: (modelId: string) => void;
  onInvalidated: (modelId: string, reason: InvalidationReason) => void;
  onError: (error: EngineClientError, context: string) => void;
}

type State = 'loading' | 'ready' | 'failed' | 'lost' | 'unloading';

interface Entry {
  readonly id: string;
  readonly options: LoadModelOptions;
  readonly key: string;
  /** The runtime was started with it: it comes back by itself. */
  isAdopted: boolean;
  state: State;
  /** Counts among the models that may be loaded. */
  hasRoom: boolean;
  handle: ModelHandle;
  work: Promise<unknown> | undefined;
  nUses: number;
  lastAccess: number;
  nReloadCrashes: number;
}

function idOf(options: LoadModelOptions): string {
  return typeof options.model === 'string' ? options.model : options.model.id;
}

function pathOf(options: LoadModelOptions): string | undefined {
  if (options.localPath !== undefined) return options.localPath;
  return typeof options.model === 'string' ? undefined : options.model.path;
}

/** What makes two loads of one id the same. */
function keyOf(options: LoadModelOptions, contextLength: number | undefined): string {
  return JSON.stringify([
    options.draft === true, pathOf(options) ?? null, options.contextLength ?? contextLength ?? null,
  ]);
}

function describe(options: LoadModelOptions): ModelDescriptor {
  const path = pathOf(options);
  return {
    id: idOf(options), source: 'local', modality: 'text', family: 'kr',
    ...(path !== undefined && { path }),
  };
}

function readyHandle(options: LoadModelOptions, wire: WireModel): ModelHandle {
  const metadata: ModelMetadata = {
    parameterCount: wire.parameter_count, dtype: wire.dtype, isVisionModel: wire.is_vision_model,
    memoryUsage: wire.memory_usage, quantization: 'none', revision: 'main', draft: wire.draft,
    architecture: wire.architecture, vocabSize: wire.vocab_size,
    contextLengthTrained: wire.context_length_trained, embeddingLength: wire.embedding_length,
    hasChatTemplate: wire.has_chat_template, cachedPath: wire.cached_path,
    loadTimeMs: wire.load_time_ms,
  };
  return Object.freeze({
    descriptor: { ...describe(options), path: wire.cached_path }, state: 'ready',
    contextLength: wire.context_length, draft: wire.draft, metadata,
  });
}

function otherHandle(options: LoadModelOptions, state: 'loading' | 'failed',
  error?: EngineClientError): ModelHandle {
  return Object.freeze({
    descriptor: describe(options), state, contextLength: options.contextLength ?? 0,
    draft: options.draft === true, metadata: error ? { error: error.toObject() } : {},
  });
}

export class ModelManager {
  private readonly entries = new Map<string, Entry>();
  /** Primary and draft, in both directions. */
  private readonly pairs = new Map<string, string>();
  private clock = 0;
  private room: Promise<void> = Promise.resolve();
  private lastDraft: string | undefined;
  private isOver = false;

  constructor(private readonly options: ManagerOptions) {}

  // ---- load, unload, list ----

  async load(options: LoadModelOptions): Promise<ModelHandle> {
    const id = idOf(options);
    const key = keyOf(options, this.options.contextLength);
    for (;;) {
      const entry = this.entries.get(id);
      if (entry === undefined || entry.state === 'failed') break;
      if (entry.state === 'unloading') {
        await entry.work?.catch(() => {});
        continue;
      }
      if (!entry.isAdopted && entry.key !== key) {
        throw new EngineClientError('ModelLoadError',
          `'${id}' is ${entry.state === 'ready' ? 'loaded' : 'being loaded'} with another role, `
          + 'path or context; unload it first', { modelId: id });
      }
      if (entry.state === 'ready') {
        this.touch(entry);
        return entry.handle;
      }
      if (entry.state === 'loading') return entry.work as Promise<ModelHandle>;
      await this.revive(entry);
    }
    const entry: Entry = {
      id, options, key, isAdopted: false, state: 'loading', hasRoom: false,
      handle: otherHandle(options, 'loading'), work: undefined, nUses: 0, lastAccess: 0,
      nReloadCrashes: 0,
    };
    this.put(entry);
    const work = this.runLoad(entry, true);
    entry.work = work;
    return work;
  }

  async unload(id: string): Promise<void> {
    const entry = this.entries.get(id);
    if (entry?.state === 'unloading') {
      await entry.work;
      return;
    }
    if (entry?.state === 'loading') {
      await entry.work?.catch(() => {});
      return this.unload(id);
    }
    if (entry === undefined || entry.state === 'failed' || entry.state === 'lost') {
      this.forget(id);
      this.options.onUnloaded(id);
      return;
    }
    entry.state = 'unloading';
    entry.work = this.runUnload(entry);
    await entry.work;
  }

  async unloadDraft(id: string | undefined): Promise<void> {
    const name = id ?? this.lastDraft;
    if (name === undefined) return;
    await this.unload(name);
  }

  list(): ModelHandle[] {
    return [...this.entries.values()].map((entry) => entry.handle);
  }

  get(id: string): ModelHandle | undefined {
    return this.entries.get(id)?.handle;
  }

  get nReady(): number {
    return this.ready().length;
  }

  /** The only model that is ready, for callers that name none. */
  only(): string | undefined {
    const ready = this.ready().filter((entry) => entry.options.draft !== true);
    return ready.length === 1 ? ready[0]?.id : undefined;
  }

  recent(): { modelId: string; lastAccess: number }[] {
    return this.ready().sort((a, b) => b.lastAccess - a.lastAccess)
      .map((entry) => ({ modelId: entry.id, lastAccess: Math.floor(entry.lastAccess) }));
  }

  defaultsOf(id: string): Partial<GeneratorParams> | undefined {
    return this.entries.get(id)?.options.parameters;
  }

  pair(primaryId: string, draftId: string): void {
    this.unpair(primaryId);
    this.unpair(draftId);
    this.pairs.set(primaryId, draftId).set(draftId, primaryId);
  }

  pairOf(id: string): string | undefined {
    return this.pairs.get(id);
  }

  // ---- use ----

  /** Waits until the model is ready and holds it until the result is called. */
  async acquire(id: string): Promise<() => void> {
    for (let hasConnected = false; ; ) {
      const entry = this.entries.get(id);
      if (entry?.state === 'ready') return this.hold(entry);
      if (entry?.state === 'loading') {
        await entry.work;
      } else if (entry?.state === 'lost') {
        await this.revive(entry);
      } else if (entry === undefined && !hasConnected) {
        hasConnected = true;
        await this.options.connect();
      } else {
        const why = entry?.handle.metadata.error?.message;
        throw new EngineClientError('ModelNotLoaded',
          `model '${id}' is not loaded${why === undefined ? '' : `: ${why}`}`, { modelId: id });
      }
    }
  }

  // ---- life of the runtime ----

  /** A runtime is there: `found` is what it was started with; what was lost is loaded again. */
  connected(found: readonly WireModel[]): void {
    this.isOver = false;
    for (const wire of found) if (wire.state === 'ready') this.adopt(wire);
    for (const entry of this.entries.values()) {
      if (entry.state !== 'lost') continue;
      if (entry.isAdopted) this.fail(entry, new EngineClientError('ModelNotLoaded', 'it is gone'));
      else this.reload(entry);
    }
  }

  /** The runtime is gone, and what it held with it. Said at once. */
  lost(): void {
    for (const entry of this.entries.values()) {
      if (entry.state === 'ready') this.lose(entry, 'python_restart');
      else if (entry.state === 'unloading') entry.state = 'lost';
    }
  }

  /** The engine ends: nothing is loaded any more, nothing will be reloaded. */
  clear(): void {
    this.isOver = true;
    this.entries.clear();
    this.pairs.clear();
    this.lastDraft = undefined;
  }

  /** Compares with what the runtime says it has; what is missing there is loaded again. */
  reconcile(loaded: readonly { model_id: string; state: string }[]): string[] {
    const theirs = new Set(loaded.filter((model) => model.state === 'ready')
      .map((model) => model.model_id));
    const errors: string[] = [];
    for (const entry of this.ready()) {
      if (theirs.delete(entry.id)) continue;
      errors.push(`'${entry.id}' is loaded here and not in the runtime`);
      this.lose(entry, 'error');
      this.reload(entry);
    }
    for (const id of theirs) {
      if (!this.entries.has(id)) errors.push(`'${id}' is loaded in the runtime and not here`);
    }
    return errors;
  }

  // ---- inside ----

  private ready(): Entry[] {
    return [...this.entries.values()].filter((entry) => entry.state === 'ready');
  }

  private touch(entry: Entry): void {
    // Strictly ascending, so that two uses in one millisecond have an order.
    this.clock = Math.max(Date.now(), this.clock + 0.001);
    entry.lastAccess = this.clock;
  }

  private hold(entry: Entry): () => void {
    this.touch(entry);
    entry.nUses += 1;
    let isHeld = true;
    return () => {
      if (isHeld) entry.nUses -= 1;
      isHeld = false;
    };
  }

  /** With the runtime that comes back the model does, too, unless it failed. */
  private async revive(entry: Entry): Promise<void> {
    await this.options.connect();
    if (entry.state === 'lost') this.reload(entry);
  }

  private put(entry: Entry): void {
    this.entries.delete(entry.id);
    this.entries.set(entry.id, entry);
    const failed = [...this.entries.values()].filter((other) => other.state === 'failed');
    for (const old of failed.slice(0, Math.max(0, failed.length - FAILED_MAX))) {
      this.entries.delete(old.id);
    }
  }

  private async runLoad(entry: Entry, isAsked: boolean): Promise<ModelHandle> {
    try {
      if (isAsked) {
        await this.options.connect();
        await this.makeRoom(entry);
      }
      const wire = await this.options.call<WireModel>('load_model', this.loadParams(entry), {
        model: entry.id, timeoutMs: this.options.loadTimeoutMs, isInternal: !isAsked,
      });
      entry.nReloadCrashes = 0;
      this.becomeReady(entry, wire);
      return entry.handle;
    } catch (thrown) {
      const error = toEngineError(thrown);
      if (this.entries.get(entry.id) === entry) this.loadFailed(entry, error, isAsked);
      throw error;
    }
  }

  private loadFailed(entry: Entry, error: EngineClientError, isAsked: boolean): void {
    const isCrash = error.code === 'TransportError';
    if (!isAsked && isCrash) {
      entry.nReloadCrashes += 1;
      if (entry.nReloadCrashes < RELOAD_CRASHES_MAX) {
        entry.work = undefined;
        entry.state = 'lost';
        return;
      }
    }
    this.fail(entry, error);
    if (!isAsked) this.options.onError(error, 'reload');
  }

  private loadParams(entry: Entry): Record<string, unknown> {
    const { options } = entry;
    const path = pathOf(options);
    const contextLength = options.contextLength ?? this.options.contextLength;
    return {
      model_id: entry.id,
      ...(path !== undefined && { local_path: path }),
      ...(contextLength !== undefined && { context_length: contextLength }),
      ...(options.draft === true && { draft: true }),
    };
  }

  private becomeReady(entry: Entry, wire: WireModel): void {
    if (this.isOver || this.entries.get(entry.id) !== entry) {
      throw new EngineClientError('Cancelled', 'the engine was shut down', { modelId: entry.id });
    }
    entry.handle = readyHandle(entry.options, wire);
    entry.state = 'ready';
    entry.work = undefined;
    if (entry.options.draft === true) this.lastDraft = entry.id;
    this.touch(entry);
    this.options.onLoaded(entry.handle);
  }

  private fail(entry: Entry, error: EngineClientError): void {
    entry.state = 'failed';
    entry.hasRoom = false;
    entry.work = undefined;
    entry.handle = otherHandle(entry.options, 'failed', error);
    this.unpair(entry.id);
  }

  private lose(entry: Entry, reason: InvalidationReason): void {
    entry.state = 'lost';
    entry.handle = otherHandle(entry.options, 'loading');
    this.options.onInvalidated(entry.id, reason);
  }

  private reload(entry: Entry): void {
    entry.state = 'loading';
    const work = this.runLoad(entry, false);
    entry.work = work;
    // Whoever waits for it hears of it; so does the `error` event.
    work.catch(() => {});
  }

  private adopt(wire: WireModel): void {
    const old = this.entries.get(wire.model_id);
    if (old !== undefined && old.state !== 'lost' && old.state !== 'failed') return;
    const options: LoadModelOptions = old?.options ?? { model: wire.model_id, draft: wire.draft };
    const entry: Entry = old ?? {
      id: wire.model_id, options, key: keyOf(options, this.options.contextLength), isAdopted: true,
      state: 'loading', hasRoom: true, handle: otherHandle(options, 'loading'), work: undefined,
      nUses: 0, lastAccess: 0, nReloadCrashes: 0,
    };
    if (old === undefined) this.put(entry);
    this.becomeReady(entry, wire);
  }

  /** One after the other, so that two loads never wait for each other. */
  private makeRoom(entry: Entry): Promise<void> {
    const turn = this.room.then(() => this.findRoom(entry));
    this.room = turn.catch(() => {});
    return turn;
  }

  /** The one that comes does not count, and is never its own victim. */
  private async findRoom(entry: Entry): Promise<void> {
    for (;;) {
      const held = [...this.entries.values()].filter((other) => other.hasRoom);
      if (held.length < this.options.maxModels) break;
      const victim = held
        .filter((other) => other.state === 'ready' && other.nUses === 0 && !this.isPairInUse(other))
        .sort((a, b) => a.lastAccess - b.lastAccess)[0];
      const busy = held.find((other) => other.work !== undefined);
      if (victim !== undefined) {
        await this.unload(victim.id);
      } else if (busy !== undefined) {
        await busy.work?.catch(() => {});
      } else {
        throw new EngineClientError('ModelLoadError',
          `${held.length} models are loaded and in use (model.max_loaded_models)`,
          { modelId: entry.id });
      }
    }
    entry.hasRoom = true;
  }

  private isPairInUse(entry: Entry): boolean {
    const other = this.pairs.get(entry.id);
    return other !== undefined && (this.entries.get(other)?.nUses ?? 0) > 0;
  }

  /** What is known here is forgotten only when the runtime has agreed. */
  private async runUnload(entry: Entry): Promise<void> {
    try {
      await this.askToUnload(entry);
    } catch (thrown) {
      entry.work = undefined;
      if ((entry.state as State) === 'lost') { // it went with the runtime
        this.forget(entry.id);
        this.options.onUnloaded(entry.id);
      } else {
        entry.state = 'ready';
      }
      throw thrown;
    }
    this.forget(entry.id);
    this.options.onInvalidated(entry.id, 'unload');
    this.options.onUnloaded(entry.id);
  }

  /** A generation whose end was told may be a moment from having left the model: that is waited
   * for. One that is really under way is the caller's affair. */
  private async askToUnload(entry: Entry): Promise<void> {
    const began = performance.now();
    for (let pauseMs = 1; ; pauseMs = Math.min(pauseMs * 2, 50)) {
      try {
        await this.options.call('unload_model', { model_id: entry.id }, { model: entry.id });
        return;
      } catch (error) {
        const isLeaving = entry.nUses === 0 && isBusy(error as EngineClientError)
          && performance.now() - began < LEAVING_MS;
        if (!isLeaving) throw error;
        await new Promise((resolve) => {
          setTimeout(resolve, pauseMs);
        });
        if (this.isOver) throw error;
      }
    }
  }

  private forget(id: string): void {
    this.entries.delete(id);
    this.unpair(id);
    if (this.lastDraft !== id) return;
    const drafts = this.ready().filter((entry) => entry.options.draft === true)
      .sort((a, b) => b.lastAccess - a.lastAccess);
    this.lastDraft = drafts[0]?.id;
  }

  private unpair(id: string): void {
    const other = this.pairs.get(id);
    this.pairs.delete(id);
    if (other !== undefined) this.pairs.delete(other);
  }
}
