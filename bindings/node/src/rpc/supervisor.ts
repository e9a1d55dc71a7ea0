// Keeps one runtime running: starts it when it is first needed, notices its end, starts it anew.
// The first restart is immediate; crashes that follow within a minute wait a little longer each
// time; a minute of health forgives all. A runtime that ends again and again without having
// answered a call is left alone until the next call. Whoever asks for a connection gets a live one
// or an error, always.
import type { WireModel } from '../core/model-manager.js';
import { EngineClientError, TimeoutError, toEngineError } from '../errors.js';
import type { Logger, RuntimeStatus } from '../types.js';
import { agreeOnShared, sharedRequest } from './tensors.js';
import type { Transport } from '../transport/transport.js';
import { RpcConnection } from './connection.js';
import type { ConnectionLimits } from './connection.js';

export interface SupervisorOptions {
  makeTransport: () => Transport;
  limits: ConnectionLimits;
  startupTimeoutMs: number;
  maxRestarts: number;
  restartDelayBaseMs: number;
  restartDelayMaxMs: number;
  healthyAfterMs: number;
  /** 0: nobody asks whether it still answers. */
  healthIntervalMs: number;
  healthFailuresMax: number;
  logger: Logger;
  onStatus: (status: RuntimeStatus, previous: RuntimeStatus) => void;
  /** A connection is there, with these models; called before anybody gets it. */
  onReady: (connection: RpcConnection, models: WireModel[]) => void;
  /** A connection ended unasked; its calls have failed already. */
  onLost: (error: EngineClientError) => void;
}

function stopped(): EngineClientError {
  return new EngineClientError('Cancelled', 'the engine was shut down');
}

export class Supervisor {
  private connection: RpcConnection | undefined;
  /** Of a start or a restart that is under way, waits included. */
  private starting: Promise<RpcConnection> | undefined;
  private stopping: Promise<void> | undefined;
  private isEnding = false;
  /** Each stop makes what began before it stale. */
  private epoch = 0;
  private cancelWait: (() => void) | undefined;
  private transport: Transport | undefined;
  private current: RuntimeStatus = 'stopped';
  private nCrashes = 0;
  private nBarren = 0;
  private readyAt = 0;

  constructor(private readonly options: SupervisorOptions) {}

  get status(): RuntimeStatus {
    return this.current;
  }

  get live(): RpcConnection | undefined {
    return this.connection;
  }

  /** A call was answered: the runtime is of use. */
  noteSuccess(): void {
    this.nBarren = 0;
  }

  connect(): Promise<RpcConnection> {
    if (this.connection !== undefined) return Promise.resolve(this.connection);
    if (this.starting !== undefined) return this.starting;
    // What was under way when the end began must not bring the runtime back.
    if (this.isEnding) return Promise.reject(stopped());
    const epoch = this.epoch;
    return this.track(async () => {
      await this.stopping;
      this.check(epoch);
      return this.start(epoch);
    });
  }

  /** Ends the runtime, or a start or a wait that is under way. Calls that come meanwhile fail. */
  stop(): Promise<void> {
    this.epoch += 1;
    this.isEnding = true;
    return this.end(stopped());
  }

  /** Ends the runtime and starts another one; calls that come meanwhile wait for it. */
  async renew(why: EngineClientError): Promise<void> {
    const ended = this.end(why);
    const { epoch } = this;
    await ended;
    if (epoch === this.epoch) await this.connect();
  }

  private end(why: EngineClientError): Promise<void> {
    this.stopping ??= this.runStop(why).finally(() => {
      this.stopping = undefined;
      this.isEnding = false;
    });
    return this.stopping;
  }

  private async runStop(why: EngineClientError): Promise<void> {
    this.epoch += 1;
    this.cancelWait?.();
    const { connection, transport, starting } = this;
    this.connection = undefined;
    this.starting = undefined;
    this.transport = undefined;
    connection?.lose(why);
    await transport?.stop();
    await starting?.catch(() => {});
    this.nCrashes = 0;
    this.nBarren = 0;
    this.change('stopped');
  }

  private track(run: () => Promise<RpcConnection>): Promise<RpcConnection> {
    const promise = run();
    this.starting = promise;
    const clear = (): void => {
      if (this.starting === promise) this.starting = undefined;
    };
    promise.then(clear, clear);
    return promise;
  }

  private check(epoch: number): void {
    if (epoch !== this.epoch) throw stopped();
  }

  private change(status: RuntimeStatus): void {
    const previous = this.current;
    if (previous === status) return;
    this.current = status;
    this.options.onStatus(status, previous);
  }

  private async start(epoch: number): Promise<RpcConnection> {
    this.change('starting');
    const transport = this.options.makeTransport();
    const connection = new RpcConnection(transport, this.options.limits);
    let isReady = false;
    transport.onClose = (reason) => {
      connection.lose(reason === null ? stopped() : toEngineError(reason));
      if (isReady && epoch === this.epoch) this.lost(connection, reason);
    };
    this.transport = transport;
    try {
      const models = await this.shakeHands(transport, connection);
      this.check(epoch);
      if (connection.isLost) throw new EngineClientError('TransportError', 'it ended at its start');
      isReady = true;
      this.connection = connection;
      this.readyAt = performance.now();
      this.options.onReady(connection, models);
      this.change('ready');
      if (this.options.healthIntervalMs > 0) void this.watch(connection);
      return connection;
    } catch (error) {
      connection.lose(toEngineError(error));
      await transport.stop();
      if (epoch !== this.epoch) throw stopped();
      this.change('error');
      throw toEngineError(error);
    }
  }

  private async shakeHands(transport: Transport,
    connection: RpcConnection): Promise<WireModel[]> {
    await transport.start();
    const limit = { timeoutMs: this.options.startupTimeoutMs };
    const [info, list] = await Promise.all([
      connection.call('runtime/info', { protocol_version: 1, ...sharedRequest(transport) }, limit),
      connection.call('list_models', {}, limit),
    ]);
    connection.tensors = await agreeOnShared(transport, info,
      (method, params) => connection.call(method, params, limit));
    return (list as { models: WireModel[] }).models;
  }

  /** One that is there and does not answer is ended like one that crashed. Only of a child: what
   * hangs in this process cannot be ended. */
  private async watch(connection: RpcConnection): Promise<void> {
    const { healthIntervalMs: timeoutMs, healthFailuresMax } = this.options;
    const { transport } = connection;
    if (transport.kind !== 'child') return;
    for (let nFailed = 0; nFailed < healthFailuresMax;) {
      await new Promise((resolve) => {
        setTimeout(resolve, nFailed === 0 ? timeoutMs : 0).unref();
      });
      try {
        await connection.call('runtime/state', {}, { timeoutMs, isUrgent: true });
        nFailed = 0;
      } catch (error) {
        if (connection.isLost) return;
        nFailed = error instanceof TimeoutError ? nFailed + 1 : 0;
      }
    }
    const error = new EngineClientError('TransportError',
      `the runtime is gone: it left ${healthFailuresMax} questions unanswered`);
    connection.lose(error);
    this.lost(connection, error, () => transport.stop());
  }

  /** `end`: of what is there still, before another one starts. */
  private lost(connection: RpcConnection, reason: Error | null, end?: () => Promise<void>): void {
    if (this.connection !== connection) return;
    this.connection = undefined;
    const error = toEngineError(reason ?? stopped());
    this.options.logger.warn(`kr-serve: ${error.message}`);
    if (performance.now() - this.readyAt >= this.options.healthyAfterMs) this.nCrashes = 0;
    this.nCrashes += 1;
    this.nBarren += 1;
    // What waits for a connection from here on waits for the new one.
    const isTried = this.nBarren <= this.options.maxRestarts;
    const { epoch } = this;
    const gone = end?.();
    if (isTried) {
      this.track(async () => {
        if (gone !== undefined) await gone;
        return this.restart(epoch);
      }).catch(() => {});
    }
    this.change('error');
    this.options.onLost(error);
  }

  private delay(): number {
    const { restartDelayBaseMs, restartDelayMaxMs } = this.options;
    if (this.nCrashes <= 1) return 0;
    return Math.min(restartDelayBaseMs * 2 ** Math.min(this.nCrashes - 2, 20), restartDelayMaxMs);
  }

  private async restart(epoch: number): Promise<RpcConnection> {
    for (let nTries = 1; ; nTries += 1) {
      await this.wait(this.delay());
      this.check(epoch);
      try {
        return await this.start(epoch);
      } catch (error) {
        this.check(epoch);
        this.nCrashes += 1;
        this.options.logger.warn(`kr-serve: restart ${nTries}: ${(error as Error).message}`);
        if (nTries >= this.options.maxRestarts) throw error;
      }
    }
  }

  private wait(delayMs: number): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        clearTimeout(timer);
        this.cancelWait = undefined;
        resolve();
      };
      const timer = setTimeout(done, delayMs);
      this.cancelWait = done;
    });
  }
}
