// What a build of PyTorch without CUDA lacks before fake tensors can be trained "on" cuda:0 and cuda:1.
//
// Loaded by LD_PRELOAD, so that these functions are found before those of the same names in PyTorch's libraries.
// Nothing here computes: streams are all the default one of their device, and every event has happened already.

#include <ATen/DeviceAccelerator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr c10::DeviceIndex kDevices = 2;
thread_local c10::DeviceIndex current = 0;

struct FakeHooks : at::CUDAHooksInterface {
  explicit FakeHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return kDevices; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex current_device() const override { return current; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex device) const override { current = device; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override { return std::exchange(current, device); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override { return exchangeDevice(device); }
};

// The backward pass runs in a thread for each device, with that device's streams and events.
struct FakeGuard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  static c10::Device device(c10::DeviceIndex index) { return {c10::DeviceType::CUDA, index}; }
  static c10::Stream stream(c10::Device of) {
    return c10::Stream(c10::Stream::DEFAULT, device(std::max<int>(of.index(), 0)));
  }

  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
  c10::Device getDevice() const override { return device(current); }
  void setDevice(c10::Device to) const override { current = to.index(); }
  void uncheckedSetDevice(c10::Device to) const noexcept override { current = to.index(); }
  c10::Device exchangeDevice(c10::Device to) const override { return device(std::exchange(current, to.index())); }

  c10::Stream getStream(c10::Device of) const noexcept override { return stream(of); }
  c10::Stream getDefaultStream(c10::Device of) const override { return stream(of); }
  c10::Stream getNewStream(c10::Device of, int) const override { return stream(of); }
  c10::Stream exchangeStream(c10::Stream to) const noexcept override { return stream(to.device()); }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}

  void record(void** event, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {
    *event = const_cast<c10::DeviceIndex*>(&kDevices);  // any address but null, which means "not recorded"
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
};

struct Registration {
  Registration() {
    c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(new FakeGuard());
  }
} registration;

}  // namespace

namespace at::detail {
const CUDAHooksInterface& getCUDAHooks() {
  static FakeHooks hooks{at::CUDAHooksArgs{}};
  return hooks;
}
}  // namespace at::detail

namespace at::accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
bool isAccelerator(c10::DeviceType type) { return type == c10::DeviceType::CUDA; }
}  // namespace at::accelerator
