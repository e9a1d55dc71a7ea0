// kr-serve: the public surface. Everything exported here is documented and tested.
export type { SharedDescriptor, Transport } from './transport/transport.js';
