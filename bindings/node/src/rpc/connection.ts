// JSON-RPC over one transport, from its start to its end: ids, answers, time limits, notifications.
// Each call is settled exactly once, by its answer, its time limit, its signal or the end of the
// connection, and leaves nothing behind.
import {
  EngineClientError, TimeoutError, cancelled, errorOfWire, malformed,
} from '../errors.js';
import { isAnswer } from './answers.js';
import { fieldWithLoneSurrogate, mayHoldLoneSurrogate } from './surrogates.js';
import type { Transport } from '../transport/transport.js';
import type { Tensors } from './tensors.js';

export interface CallOptions {
  timeoutMs: number;
  signal?: AbortSignal | undefined;
  /** Small calls that relieve the runtime (cancel) do not wait for their turn. */
  isUrgent?: boolean;
}

export interface ConnectionLimits {
  maxPending: number;
  maxWaiting: number;
}

export type Params = Record<string, unknown>;
export type OnNotification = (method: string, params: Params) => void;

interface Pending {
  readonly id: number;
  readonly method: string;
  readonly message: string;
  isSent: boolean;
  isUrgent: boolean;
  finish(error: EngineClientError | undefined, result: unknown): void;
}

interface Message {
  id?: unknown;
  method?: unknown;
  params?: unknown;
  result?: unknown;
  error?: unknown;
}

export class RpcConnection {
  onNotification: OnNotification = () => {};
  /** Lines that were no message, answers that nobody waits for. */
  nBadMessages = 0;
  /** Shared memory, once it is agreed on. */
  tensors: Tensors | undefined;
  private readonly pending = new Map<number, Pending>();
  private readonly waiting = new Set<Pending>();
  private nInFlight = 0;
  private lastId = 0;
  private loss: EngineClientError | undefined;

  constructor(readonly transport: Transport, private readonly limits: ConnectionLimits) {
    transport.onMessage = (line) => this.take(line);
  }

  get isLost(): boolean {
    return this.loss !== undefined;
  }

  get nPending(): number {
    return this.pending.size + this.waiting.size;
  }

  call(method: string, params: Params, options: CallOptions): Promise<unknown> {
    if (this.loss !== undefined) return Promise.reject(this.loss);
    const { signal, timeoutMs, isUrgent = false } = options;
    if (signal?.aborted) return Promise.reject(cancelled(method, signal.reason));
    const mustWait = !isUrgent && this.nInFlight >= this.limits.maxPending;
    if (mustWait && this.waiting.size >= this.limits.maxWaiting) {
      return Promise.reject(new EngineClientError('ServerError',
        `${method}: ${this.limits.maxWaiting} calls are waiting already`, { method }));
    }
    const id = ++this.lastId;
    const shared = this.tensors?.share(params);
    const message = JSON.stringify({
      jsonrpc: '2.0', id, method, params: shared?.params ?? params,
    });
    const half = mayHoldLoneSurrogate(message) ? fieldWithLoneSurrogate(params) : undefined;
    if (half !== undefined) {
      if (shared !== undefined) this.tensors?.release(shared.given);
      return Promise.reject(new EngineClientError('InvalidParams',
        `${method}: '${half}' holds half a surrogate pair, which is no character`,
        { method, field: half }));
    }
    return new Promise((resolve, reject) => {
      const began = performance.now();
      const onAbort = (): void => finish(cancelled(method, signal?.reason), undefined);
      const timer = setTimeout(() => {
        finish(new TimeoutError(method, timeoutMs, id, performance.now() - began), undefined);
      }, timeoutMs);
      const finish = (error: EngineClientError | undefined, result: unknown): void => {
        if (!this.forget(call)) return;
        clearTimeout(timer);
        signal?.removeEventListener('abort', onAbort);
        if (shared !== undefined) this.tensors?.release(shared.given);
        if (error !== undefined) reject(error);
        else resolve(result);
        this.admit();
      };
      const call: Pending = { id, method, message, isSent: false, isUrgent, finish };
      signal?.addEventListener('abort', onAbort, { once: true });
      if (mustWait) this.waiting.add(call);
      else this.sendCall(call);
    });
  }

  /** Nobody answers; a connection that is lost takes nothing. */
  notify(method: string, params: Params): void {
    if (this.loss !== undefined) return;
    this.transport.send(JSON.stringify({ jsonrpc: '2.0', method, params })).catch(() => {});
  }

  /** The end: every call that is under way fails with `error`, now. */
  lose(error: EngineClientError): void {
    if (this.loss !== undefined) return;
    this.loss = error;
    for (const call of [...this.pending.values(), ...this.waiting]) call.finish(error, undefined);
  }

  private sendCall(call: Pending): void {
    this.pending.set(call.id, call);
    call.isSent = true;
    if (!call.isUrgent) this.nInFlight += 1;
    this.transport.send(call.message).catch((error: unknown) => {
      const { message } = error as Error;
      const details = { method: call.method, unsent: true };
      call.finish(new EngineClientError('TransportError', message, details, error), undefined);
    });
  }

  private forget(call: Pending): boolean {
    if (this.waiting.delete(call)) return true;
    if (!this.pending.delete(call.id)) return false;
    if (!call.isUrgent) this.nInFlight -= 1;
    return true;
  }

  private admit(): void {
    if (this.loss !== undefined) return;
    for (const call of this.waiting) {
      if (this.nInFlight >= this.limits.maxPending) return;
      this.waiting.delete(call);
      this.sendCall(call);
    }
  }

  private take(line: string): void {
    let message: Message;
    try {
      message = JSON.parse(line) as Message;
    } catch {
      this.nBadMessages += 1;
      return;
    }
    if (typeof message !== 'object' || message === null) {
      this.nBadMessages += 1;
    } else if (typeof message.method === 'string') {
      this.onNotification(message.method, (message.params ?? {}) as Params);
    } else {
      this.takeAnswer(message);
    }
  }

  private takeAnswer(message: Message): void {
    const call = typeof message.id === 'number' ? this.pending.get(message.id) : undefined;
    try {
      this.tensors?.resolve(message.result); // also of a call that was given up: it is ours to free
    } catch (error) {
      if (call === undefined) return;
      const { method } = call;
      call.finish(error instanceof EngineClientError ? error : malformed(method, error), undefined);
      return;
    }
    if (call === undefined) {
      // Of a call that was given up, or of nothing that was ever asked.
      if (typeof message.id !== 'number' || message.id > this.lastId) this.nBadMessages += 1;
      return;
    }
    if (message.error !== undefined && message.error !== null) {
      call.finish(errorOfWire(message.error, call.method), undefined);
    } else if (isAnswer(call.method, message.result)) {
      call.finish(undefined, message.result);
    } else {
      call.finish(malformed(call.method), undefined);
    }
  }
}
