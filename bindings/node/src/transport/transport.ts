// What carries JSON-RPC messages to a runtime and back. Both transports carry the same messages:
// the child process runs `kr runtime` and talks through its pipes, the addon runs the same
// dispatcher inside this process. All above this interface is common code.

import type { SharedData } from './addon.js';

/** Where a payload lies that is too large for a message, as the protocol's messages name it. */
export type SharedDescriptor = Record<string, unknown>;

/** Who owns a transport sets both handlers before start(). They are called on later turns of the
 * event loop, never from inside start(), send() or stop(). */
export interface Transport {
  readonly kind: 'child' | 'in-process';
  /** Of the process that runs the model: the child's; absent before start() and after the end. */
  readonly pid?: number | undefined;

  /** Resolves when the other side reads messages. Rejects with what it said when it does not. */
  start(): Promise<void>;

  /** One message without its newline. Resolves when it has been handed over, after those before it;
   * rejects when the transport has closed. */
  send(message: string): Promise<void>;

  /** One whole message without its newline, in the order they came. */
  onMessage: (line: string) => void;

  /** The last call, once for each start() that resolved: null after stop(), else why it ended. */
  onClose: (reason: Error | null) => void;

  /** Ends the other side politely, then firmly. Resolves when nothing of it is left. */
  stop(): Promise<void>;

  /** Payloads in shared memory, where the addon is there. A taken segment is unlinked. */
  takeShared?(descriptor: SharedDescriptor): Buffer;
  giveShared?(data: SharedData, shape?: readonly number[]): SharedDescriptor;
  /** The answer to what a given one was sent with has come. */
  releaseShared?(descriptor: SharedDescriptor): void;
}
