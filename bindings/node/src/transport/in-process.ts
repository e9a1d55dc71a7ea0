// The runtime inside this process: the addon runs the same dispatcher as `kr runtime` on threads of
// its own. Messages go through its thread-safe function, some at a time; the event loop never waits.
import { EngineClientError } from '../errors.js';
import { needAddon } from './addon.js';
import type { Addon, AddonHandle, SharedData } from './addon.js';
import { SharedMemory } from './shared.js';
import type { SharedDescriptor, Transport } from './transport.js';

export interface InProcessOptions {
  /** Options of `kr runtime`. */
  args?: readonly string[];
  /** For tests. */
  addon?: Addon;
}

interface Waiter {
  resolve(): void;
  reject(error: Error): void;
}

export class InProcessTransport implements Transport {
  readonly kind = 'in-process';
  onMessage: (line: string) => void = () => {};
  onClose: (reason: Error | null) => void = () => {};
  private handle: AddonHandle | undefined;
  private shared: SharedMemory | undefined;
  private isReady = false;
  private isStopping = false;
  private drained: { promise: Promise<void>; waiter: Waiter } | undefined;
  private ended: Promise<void> | undefined;
  private starter: Waiter | undefined;
  private onEnded: () => void = () => {};
  private readonly addon: Addon;

  constructor(private readonly options: InProcessOptions = {}) {
    this.addon = options.addon ?? needAddon();
  }

  get pid(): number | undefined {
    return this.isReady ? process.pid : undefined;
  }

  async start(): Promise<void> {
    this.ended = new Promise((resolve) => {
      this.onEnded = resolve;
    });
    await new Promise<void>((resolve, reject) => {
      this.starter = { resolve, reject };
      this.handle = this.addon.open(this.options.args ?? [], (kind, value) => {
        if (kind === 'lines') for (const line of value as string[]) this.onMessage(line);
        else if (kind === 'ready') this.ready();
        else if (kind === 'drained') this.drain();
        else this.close(value as string);
      });
      this.shared = new SharedMemory(this.addon, this.handle);
    });
  }

  send(message: string): Promise<void> {
    if (this.handle === undefined || !this.isReady) return Promise.reject(closed('it is not running'));
    try {
      if (this.addon.send(this.handle, message) === 0) return Promise.resolve();
    } catch (error) {
      return Promise.reject(closed((error as Error).message, error));
    }
    this.drained ??= waiting();
    return this.drained.promise;
  }

  async stop(): Promise<void> {
    if (this.handle === undefined) return;
    this.isStopping = true;
    this.addon.end(this.handle);
    await this.ended;
  }

  takeShared(descriptor: SharedDescriptor): Buffer {
    return this.memory().take(descriptor);
  }

  giveShared(data: SharedData, shape?: readonly number[]): SharedDescriptor {
    return this.memory().give(data, shape);
  }

  releaseShared(descriptor: SharedDescriptor): void {
    this.shared?.release(descriptor);
  }

  private memory(): SharedMemory {
    if (this.shared === undefined || !this.isReady) throw closed('it is not running');
    return this.shared;
  }

  private ready(): void {
    this.isReady = true;
    this.starter?.resolve();
    this.starter = undefined;
  }

  private drain(): void {
    const { drained } = this;
    this.drained = undefined;
    drained?.waiter.resolve();
  }

  private close(why: string): void {
    const wasReady = this.isReady;
    const reason = closed(why === '' ? 'it has ended' : why);
    this.isReady = false;
    this.handle = undefined;
    this.shared = undefined;
    this.drained?.waiter.reject(reason);
    this.drained = undefined;
    this.starter?.reject(why === '' ? reason : new EngineClientError('RuntimeError', why));
    this.starter = undefined;
    this.onEnded();
    if (wasReady) this.onClose(this.isStopping ? null : reason);
  }
}

function waiting(): { promise: Promise<void>; waiter: Waiter } {
  let waiter: Waiter = { resolve: () => {}, reject: () => {} };
  const promise = new Promise<void>((resolve, reject) => {
    waiter = { resolve, reject };
  });
  return { promise, waiter };
}

function closed(what: string, cause?: unknown): EngineClientError {
  return new EngineClientError('TransportError', `the runtime is gone: ${what}`, undefined, cause);
}
