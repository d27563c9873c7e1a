//! Programs of a few bytes that make one system call and exit with its error number, for calls that busybox doesn't make.

/// 64-bit x86: `number(arguments…)`, then `exit(-result)`.
#[cfg(target_arch = "x86_64")]
pub fn call(number: u32, arguments: [u32; 2]) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(number.to_le_bytes());
    code.push(0xbf);
    code.extend(arguments[0].to_le_bytes());
    code.push(0xbe);
    code.extend(arguments[1].to_le_bytes());
    // xor edx,edx; xor r10d,r10d; xor r8d,r8d; syscall; neg eax; mov edi,eax; mov eax,60; syscall
    code.extend([
        0x31, 0xd2, 0x45, 0x31, 0xd2, 0x45, 0x31, 0xc0, 0x0f, 0x05, 0xf7, 0xd8, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05,
    ]);
    let base: u64 = 0x40_0000;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    file.extend((base + 120).to_le_bytes());
    file.extend(64u64.to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let size = 120 + code.len() as u64;
    for word in [0, base, base, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

/// The same by the 32-bit entry point, in a 32-bit program.
#[cfg(target_arch = "x86_64")]
pub fn call_32(number: u32, arguments: [u32; 2]) -> Vec<u8> {
    let mut code = vec![0xb8];
    code.extend(number.to_le_bytes());
    code.push(0xbb);
    code.extend(arguments[0].to_le_bytes());
    code.push(0xb9);
    code.extend(arguments[1].to_le_bytes());
    // xor edx,edx; int 0x80; neg eax; mov ebx,eax; mov eax,1; int 0x80
    code.extend([0x31, 0xd2, 0xcd, 0x80, 0xf7, 0xd8, 0x89, 0xc3, 0xb8, 1, 0, 0, 0, 0xcd, 0x80]);
    let base: u32 = 0x40_0000;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 3, 0, 1, 0, 0, 0]);
    for word in [base + 84, 52, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    let size = 84 + code.len() as u32;
    for word in [1, 0, base, base, size, size, 5, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}
